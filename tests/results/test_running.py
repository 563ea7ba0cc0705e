"""Running a study: its runs side by side, and what ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.results.running import Clock, run_all
from examples.results.trials import Trial
from tests import ROOT
from utils.errors import InputError


def note(run_dir: Path, word: str) -> list[str]:
    """A command that appends a word to a file of the run folder."""
    return ["-c", f"open({str(run_dir / 'words')!r}, 'a').write({word!r})"]


def test_commands_of_a_trial_follow_one_another(tmp_path, capsys):
    trials = [Trial(tmp_path / name, (note(tmp_path / name, "one "), note(tmp_path / name, "two"))) for name in "abc"]
    run_all(trials, jobs=2)
    assert [(tmp_path / name / "words").read_text() for name in "abc"] == ["one two"] * 3
    assert capsys.readouterr().out.count("/3] ") == 3


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_runs_too(number, code, tmp_path):
    """The whole command is asked to stop while its first two runs are under way."""
    command = [sys.executable, "-m", "examples.results", "digits", "--folder", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    outputs = [tmp_path / "rho10" / f"{key}_s0" / "output.txt" for key in ("kcl", "tsc")]
    while not all(file.exists() and "steps an epoch" in file.read_text() for file in outputs):
        assert process.poll() is None
        time.sleep(0.2)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and f"{tmp_path}: another run is writing there" in second.stderr + second.stdout
    process.send_signal(number)
    assert process.wait(60) == code
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_the_time_left_is_by_the_weight_of_what_has_ended():
    """A trial of weight 3 took 30 s: the other two, of 1 each, take 20."""
    now = iter([0.0, 30.0])
    trials = [Trial(Path(name), (), weight) for name, weight in (("a", 3), ("b", 1), ("c", 1))]
    clock = Clock(trials, lambda: next(now))
    clock.ended(trials[0])
    assert clock.done == 1 and clock.left() == "about 0:00:20 left"
