"""Run the trials of a study in parallel, each on one core."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from examples.results.trials import Trial, ended
from utils import errors
from utils.distributed import say
from utils.run.folder import lock_owner

PR_SET_PDEATHSIG = 1


def run_all(trials: list[Trial], jobs: int) -> None:
    """Run the trials, `jobs` at a time. If one fails or this process stops, stop all; they save a checkpoint.

    Raises:
        InputError: A trial failed, or stopped before its last epoch.
    """
    waiting, running, clock = deque(trials), {}, Clock(trials)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.popleft()
                running[start(trial)] = trial
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                trial = running.pop(process)
                if process.returncode:
                    raise errors.InputError(
                        f"{trial.run_dir}: {why(process, trial)}. Its output is in {output_of(trial)}"
                    )
                if not ended(trial.commands[0]):  # a run that was asked to stop also exits with code 0
                    raise errors.InputError(
                        f"{trial.run_dir}: stopped before its last epoch. Run the same command again to continue"
                    )
                if rest := trial.commands[1:]:
                    waiting.appendleft(trial._replace(commands=rest))
                    continue
                clock.ended(trial)
                say(f"[{clock.done:>3}/{len(trials)}] {trial.run_dir}  {clock.left()}")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


class Clock:
    """Estimate of the remaining time, from the weights of the trials that have finished since its creation."""

    def __init__(self, trials: list[Trial], now: Callable[[], float] = time.monotonic):
        self.now, self.started, self.done = now, now(), 0
        self.whole, self.weight = sum(trial.weight for trial in trials), 0.0

    def ended(self, trial: Trial) -> None:
        self.done, self.weight = self.done + 1, self.weight + trial.weight

    def left(self) -> str:
        seconds = (self.now() - self.started) / self.weight * (self.whole - self.weight)
        return f"about {timedelta(seconds=round(seconds))} left in this stage"


def wait_for_others(trials: list[Trial], seconds: float = 60) -> None:
    """Wait until runs of an earlier, killed study have saved and ended (see `_end_with_parent`).

    Raises:
        InputError: A run has not ended after this many seconds.
    """
    for trial in trials:
        ends, said = time.monotonic() + seconds, False
        while who := lock_owner(trial.run_dir) or lock_owner(trial.run_dir / "heads"):
            if not said:
                say(f"{trial.run_dir}: waiting for {who} to finish writing")
                said = True
            if time.monotonic() > ends:
                raise errors.InputError(f"{trial.run_dir}: {who} is still writing. End it, and run the command again")
            time.sleep(0.2)


def _end_with_parent() -> None:
    """Make a run receive SIGTERM, on which it saves, when the study is killed (Linux prctl)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(trial: Trial) -> subprocess.Popen:
    """Start the first command of a trial on one core. Its output goes to a file in the run folder."""
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    with output_of(trial).open("a") as file:
        command = [sys.executable, *trial.commands[0]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        options = {"preexec_fn": _end_with_parent} if sys.platform == "linux" else {}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, **options)


def output_of(trial: Trial) -> Path:
    return trial.run_dir / "output.txt"


def why(process: subprocess.Popen, trial: Trial) -> str:
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}"
    return (output_of(trial).read_text().splitlines() or ["ended without output"])[-1]
