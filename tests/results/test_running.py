"""Running a study: parallel runs, failures and signals."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from examples.results import __main__ as study_command
from examples.results import running
from examples.results.plan_file import read_plan
from examples.results.running import OutOfTimeError, run_all, wait_for_earlier_runs
from examples.results.study import Study
from examples.results.trials import Cell, TimeEstimate, Trial, unfinished_part
from tests.processes import Program
from tests.refusals import assert_names, refusal
from tests.results import played
from tests.results.written import write_run
from utils.run.folder import lock_run_dir


@pytest.fixture
def all_finished(monkeypatch):
    """Count every command with exit code 0 as finished, because these commands are not training runs."""
    monkeypatch.setattr(running, "is_finished", lambda command: True)


def append_word(run_dir: Path, word: str) -> list[str]:
    """Return a command that appends a word to a file in the run folder."""
    return ["-c", f"open({str(run_dir / 'words')!r}, 'a').write({word!r})"]


def test_commands_of_a_trial_run_in_order(all_finished, tmp_path, capsys):
    trials = [
        Trial(tmp_path / name, (append_word(tmp_path / name, "one "), append_word(tmp_path / name, "two")))
        for name in "abc"
    ]
    run_all(trials, jobs=2)
    assert [(tmp_path / name / "words").read_text() for name in "abc"] == ["one two"] * 3
    assert_names(capsys.readouterr().out, "1/3", "2/3", "3/3", *(trial.run_dir for trial in trials))


def test_run_of_a_plan_without_measures_finishes(write_plan, tmp_path):
    """Without --monitor-freq, contrastive runs write neither features nor results."""
    plan = read_plan(str(write_plan((" --monitor-freq 2", ""))))
    study, cell = Study(plan, tmp_path / "runs", torch.device("cpu")), Cell(10, plan.methods["kcl"])
    write_run(study, cell, 0, 80, 81)
    trial = study.trial(cell, 0)
    (trial.run_dir / "features.npz").unlink()
    assert not unfinished_part(trial).commands


def test_unfinished_run_with_exit_code_0_is_refused(tmp_path, monkeypatch):
    """SIGUSR1 makes a run save and exit with code 0."""
    monkeypatch.setattr(running, "is_finished", lambda command: False)
    trial = Trial(tmp_path / "a", (append_word(tmp_path / "a", "one"), append_word(tmp_path / "a", "two")))
    refusal(lambda: run_all([trial], jobs=1), trial.run_dir)
    assert (tmp_path / "a" / "words").read_text() == "one"


def test_failed_run_is_named_and_ends_the_others(all_finished, tmp_path):
    pid = tmp_path / "pid"
    endless = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    failing = (
        f"import os, time\nwhile not os.path.getsize({str(pid)!r}): time.sleep(0.1)\nraise SystemExit('error: no')"
    )
    pid.touch()
    trials = [Trial(tmp_path / "endless", (["-c", endless],)), Trial(tmp_path / "failing", (["-c", failing],))]
    message = refusal(
        lambda: run_all(trials, jobs=2), tmp_path / "failing", ": no", tmp_path / "failing" / "output.txt"
    )
    assert "error:" not in message  # the study prints the word
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_study_outside_the_repository_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(lambda: study_command.main(["digits"]), tmp_path, Path(study_command.__file__).parents[2])
    assert not [*tmp_path.iterdir()]


def test_killed_run_is_reported_with_its_signal(tmp_path):
    kill_itself = ["-c", "import os, signal; print('fine so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"]
    trial = Trial(tmp_path / "a", (kill_itself,))
    refusal(lambda: run_all([trial], jobs=1), trial.run_dir, "SIGKILL", trial.run_dir / "output.txt")


def test_runs_stop_when_the_time_is_over(tmp_path):
    endless = Trial(tmp_path / "a", (["-c", "import time; time.sleep(1000)"],))
    with pytest.raises(OutOfTimeError):
        run_all([endless], jobs=1, deadline=time.monotonic())


def wait_until(condition, study: Program) -> None:
    while not condition():
        assert study.poll() is None, study.communicate()
        time.sleep(0.05)


@pytest.fixture
def start_study(tmp_path):
    """Start the study of tests/results/played.py, and wait until both runs have printed the word."""

    def start(word: str) -> Program:
        study = Program([played.__file__, str(tmp_path)])
        outputs = [trial.run_dir / "output.txt" for trial in played.trials(tmp_path)]
        wait_until(lambda: all(file.exists() and file.read_text().endswith(f"{word}\n") for file in outputs), study)
        return study

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_signal_to_study_ends_its_runs(number, code, start_study, tmp_path):
    """While the study runs, its folder is locked, and a second study is refused."""
    study = start_study("started")
    refusal(lock_run_dir(tmp_path).__enter__, tmp_path, f"process {study.pid}")
    other = [Trial(tmp_path, ())]
    refusal(lambda: wait_for_earlier_runs(other, seconds=0.5), tmp_path, f"process {study.pid}")
    study.send_signal(number)
    study.communicate()
    assert study.returncode == code
    assert all((trial.run_dir / "saved").exists() for trial in played.trials(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.killpg(study.pid, signal.SIGKILL)
    wait_for_earlier_runs(other, seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with their parent by Linux's prctl")
def test_killed_study_ends_and_later_resumes_its_runs(start_study):
    """The second study waits until the runs of the first have saved."""
    first = start_study("started")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start_study("resumed")
    second.send_signal(signal.SIGTERM)
    second.communicate()
    assert second.returncode == 143


def test_signal_to_study_saves_real_training_run(write_plan, digits_root, tmp_path):
    """This study runs real commands; the other tests use short scripts."""
    plan = write_plan(
        ("--epochs 2 -b", "--epochs 400 -b"),
        ("data = --dataset digits", f"data = --dataset digits --data-root {digits_root}"),
        ("[method pixels]\ntitle = pixels\nstage1 = pixels\n", ""),
    )
    study = Program(["-m", "examples.results", str(plan), "--folder", str(tmp_path / "runs"), "--jobs", "1"])
    run_dir = tmp_path / "runs" / "rho10" / "kcl_s0"
    wait_until((run_dir / "args.json").exists, study)
    study.send_signal(signal.SIGTERM)
    study.communicate()
    assert study.returncode == 143 and (run_dir / "last.pth.tar").exists()


def test_remaining_time_is_weighted_by_trial_cost():
    """A trial of weight 3 took 30 s, so the other two, of weight 1, take 20 s together."""
    now = iter([0.0, 30.0])
    trials = [Trial(Path(name), (), weight) for name, weight in (("a", 3), ("b", 1), ("c", 1))]
    estimate = TimeEstimate(trials, lambda: next(now))
    estimate.add_finished(trials[0])
    assert estimate.done == 1 and "0:00:20" in estimate.remaining()
