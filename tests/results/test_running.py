"""Running a study: its runs side by side, and what ends them."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from examples.results import running
from examples.results.running import Clock, run_all, wait_for_others
from examples.results.trials import Trial
from tests.processes import Program
from tests.refusals import assert_names, refusal
from tests.results import played
from utils.run.folder import lock_run_dir


@pytest.fixture
def ended(monkeypatch):
    """These commands are not runs of this project: one that exited with 0 has ended."""
    monkeypatch.setattr(running, "ended", lambda command: True)


def note(run_dir: Path, word: str) -> list[str]:
    """A command that appends a word to a file of the run folder."""
    return ["-c", f"open({str(run_dir / 'words')!r}, 'a').write({word!r})"]


def test_commands_of_a_trial_follow_one_another(ended, tmp_path, capsys):
    trials = [Trial(tmp_path / name, (note(tmp_path / name, "one "), note(tmp_path / name, "two"))) for name in "abc"]
    run_all(trials, jobs=2)
    assert [(tmp_path / name / "words").read_text() for name in "abc"] == ["one two"] * 3
    assert_names(capsys.readouterr().out, "1/3", "2/3", "3/3", *(trial.run_dir for trial in trials))


def test_a_run_that_exits_with_0_before_its_last_epoch_is_named(tmp_path, monkeypatch):
    """As after SIGUSR1, which asks it to save and exit."""
    monkeypatch.setattr(running, "ended", lambda command: False)
    trial = Trial(tmp_path / "a", (note(tmp_path / "a", "one"), note(tmp_path / "a", "two")))
    refusal(lambda: run_all([trial], jobs=1), trial.run_dir)
    assert (tmp_path / "a" / "words").read_text() == "one"


def test_a_failure_is_named_and_ends_the_others(ended, tmp_path):
    pid = tmp_path / "pid"
    endless = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    failing = (
        f"import os, time\nwhile not os.path.getsize({str(pid)!r}): time.sleep(0.1)\nraise SystemExit('error: no')"
    )
    pid.touch()
    trials = [Trial(tmp_path / "endless", (["-c", endless],)), Trial(tmp_path / "failing", (["-c", failing],))]
    refusal(lambda: run_all(trials, jobs=2), tmp_path / "failing", "error: no", tmp_path / "failing" / "output.txt")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_run_that_was_killed_is_named_by_its_signal(tmp_path):
    suicide = ["-c", "import os, signal; print('fine so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"]
    trial = Trial(tmp_path / "a", (suicide,))
    refusal(lambda: run_all([trial], jobs=1), trial.run_dir, "SIGKILL", trial.run_dir / "output.txt")


def wait_until(condition, study: Program) -> None:
    while not condition():
        assert study.poll() is None, study.communicate()
        time.sleep(0.05)


@pytest.fixture
def play(tmp_path):
    """Start the study of tests/results/played.py, and wait until both of its runs have printed a word."""

    def start(word: str) -> Program:
        study = Program([played.__file__, str(tmp_path)])
        outputs = [trial.run_dir / "output.txt" for trial in played.trials(tmp_path)]
        wait_until(lambda: all(file.exists() and file.read_text().endswith(f"{word}\n") for file in outputs), study)
        return study

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_runs_too(number, code, play, tmp_path):
    """While the study runs, its folder is locked: a second one is refused."""
    study = play("started")
    refusal(lock_run_dir(tmp_path).__enter__, tmp_path, f"process {study.pid}")
    other = [Trial(tmp_path, ())]
    refusal(lambda: wait_for_others(other, seconds=0.5), tmp_path, f"process {study.pid}")
    study.send_signal(number)
    study.communicate()
    assert study.returncode == code
    assert all((trial.run_dir / "saved").exists() for trial in played.trials(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.killpg(study.pid, signal.SIGKILL)
    wait_for_others(other, seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with their parent by Linux's prctl")
def test_a_killed_study_ends_its_runs_and_resumes_them(play):
    """The second study waits until the runs of the first have saved themselves."""
    killed = play("started")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = play("resumed")
    again.send_signal(signal.SIGTERM)
    again.communicate()
    assert again.returncode == 143


def test_a_signal_ends_a_training_which_saves_itself(write_plan, digits_root, tmp_path):
    """A real study with real commands: all others here are played."""
    plan = write_plan(
        ("--epochs 2 -b", "--epochs 400 -b"),
        ("data = --dataset digits", f"data = --dataset digits --data-root {digits_root}"),
        ("[method pixels]\ntitle = pixels\nway = pixels\n", ""),
    )
    study = Program(["-m", "examples.results", str(plan), "--folder", str(tmp_path / "runs"), "--jobs", "1"])
    run_dir = tmp_path / "runs" / "rho10" / "kcl_s0"
    wait_until((run_dir / "args.json").exists, study)
    study.send_signal(signal.SIGTERM)
    study.communicate()
    assert study.returncode == 143 and (run_dir / "last.pth.tar").exists()


def test_the_time_left_is_by_the_weight_of_what_has_ended():
    """A trial of weight 3 took 30 s: the other two, of 1 each, take 20."""
    now = iter([0.0, 30.0])
    trials = [Trial(Path(name), (), weight) for name, weight in (("a", 3), ("b", 1), ("c", 1))]
    clock = Clock(trials, lambda: next(now))
    clock.ended(trials[0])
    assert clock.done == 1 and "0:00:20" in clock.left()
