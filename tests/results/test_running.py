"""Running a study: its runs side by side, and what ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.results import running
from examples.results.running import Clock, run_all, wait_for_others
from examples.results.trials import Trial
from tests import ROOT
from utils.errors import InputError


@pytest.fixture(autouse=True)
def done(monkeypatch):
    """These commands are no runs of ours: one that ended well has ended."""
    monkeypatch.setattr(running, "ended", lambda command: True)


def note(run_dir: Path, word: str) -> list[str]:
    """A command that appends a word to a file of the run folder."""
    return ["-c", f"open({str(run_dir / 'words')!r}, 'a').write({word!r})"]


def test_commands_of_a_trial_follow_one_another(tmp_path, capsys):
    trials = [Trial(tmp_path / name, (note(tmp_path / name, "one "), note(tmp_path / name, "two"))) for name in "abc"]
    run_all(trials, jobs=2)
    assert [(tmp_path / name / "words").read_text() for name in "abc"] == ["one two"] * 3
    assert capsys.readouterr().out.count("/3] ") == 3


def test_a_run_that_ended_well_before_its_end_is_named(tmp_path, monkeypatch):
    """As by SIGUSR1, which asks it to save and go."""
    monkeypatch.setattr(running, "ended", lambda command: False)
    with pytest.raises(InputError, match="a: ended before its end, as by SIGUSR1; the same command goes on"):
        run_all([Trial(tmp_path / "a", (note(tmp_path / "a", "one"), note(tmp_path / "a", "two")))], jobs=1)
    assert (tmp_path / "a" / "words").read_text() == "one"


def test_a_failure_is_named_and_ends_the_others(tmp_path):
    pid = tmp_path / "pid"
    endless = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    failing = (
        f"import os, time\nwhile not os.path.getsize({str(pid)!r}): time.sleep(0.1)\nraise SystemExit('error: no')"
    )
    pid.touch()
    trials = [Trial(tmp_path / "endless", (["-c", endless],)), Trial(tmp_path / "failing", (["-c", failing],))]
    with pytest.raises(InputError, match=r"failing: error: no; its output is in .*failing/output.txt"):
        run_all(trials, jobs=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_run_that_was_killed_is_named_by_its_signal(tmp_path):
    suicide = ["-c", "import os, signal; print('fine so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(InputError, match="killed by SIGKILL; its output"):
        run_all([Trial(tmp_path / "a", (suicide,))], jobs=1)


@pytest.fixture
def under_way(tmp_path):
    """The study of the digits, its first two runs under way."""
    command = [sys.executable, "-m", "examples.results", "digits", "--folder", str(tmp_path), "--jobs", "2"]
    outputs = [tmp_path / "rho10" / f"{key}_s0" / "output.txt" for key in ("kcl", "tsc")]
    lines = [0, 0]

    def begin() -> subprocess.Popen:
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        began = lambda file, so_far: file.exists() and file.read_text().count("steps an epoch") > so_far  # noqa: E731
        while not all(map(began, outputs, lines)):
            assert process.poll() is None
            time.sleep(0.2)
        lines[:] = [file.read_text().count("steps an epoch") for file in outputs]
        return process

    begin.command = command
    return begin


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_runs_too(number, code, under_way, tmp_path):
    """And while it is under way there is no second."""
    process = under_way()
    second = subprocess.run(under_way.command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and f"{tmp_path}: another run is writing there" in second.stderr + second.stdout
    process.send_signal(number)
    assert process.wait(60) == code
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with their parent by Linux's prctl")
def test_a_killed_study_takes_its_runs_along_and_goes_on(under_way, tmp_path):
    killed = under_way()
    killed.kill()
    killed.wait()
    again = under_way()  # it waits for them, and takes up what they have saved
    assert "resumed" in (tmp_path / "rho10" / "kcl_s0" / "output.txt").read_text()
    again.terminate()
    assert again.wait(60) == 143


def test_a_run_that_does_not_let_go_is_named(tmp_path):
    """Another process holds the folder."""
    hold = (
        f"from pathlib import Path; from utils.run.folder import hold; c = hold(Path({str(tmp_path)!r})); c.__enter__()"
    )
    holds = [sys.executable, "-c", f"{hold}; print('held', flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(holds, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"process {other.pid} on .* still writes there; end it"):
            wait_for_others([Trial(tmp_path, ())], seconds=0.5)
        other.kill()
    wait_for_others([Trial(tmp_path, ())], seconds=0.5)


def test_the_time_left_is_by_the_weight_of_what_has_ended():
    """A trial of weight 3 took 30 s: the other two, of 1 each, take 20."""
    now = iter([0.0, 30.0])
    trials = [Trial(Path(name), (), weight) for name, weight in (("a", 3), ("b", 1), ("c", 1))]
    clock = Clock(trials, lambda: next(now))
    clock.ended(trials[0])
    assert clock.done == 1 and clock.left() == "about 0:00:20 left of these"
