"""Running the trials of a study: as many at a time as there are cores, each on one, until all have ended."""

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
from utils.run.folder import holder

PR_SET_PDEATHSIG = 1


def run_all(trials: list[Trial], jobs: int) -> None:
    """Run them, so many at a time; whatever ends this, as an InputError of one, ends all, which save themselves."""
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
                        f"{trial.run_dir}: {why(process, trial)}; its output is in {output_of(trial)}"
                    )
                if not ended(trial.commands[0]):  # one that was asked to stop ends well too
                    raise errors.InputError(
                        f"{trial.run_dir}: ended before its end, as by SIGUSR1; the same command goes on"
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
    """How long the rest will take, by the weights of what has ended since it began."""

    def __init__(self, trials: list[Trial], now: Callable[[], float] = time.monotonic):
        self.now, self.started, self.done = now, now(), 0
        self.whole, self.weight = sum(trial.weight for trial in trials), 0.0

    def ended(self, trial: Trial) -> None:
        self.done, self.weight = self.done + 1, self.weight + trial.weight

    def left(self) -> str:
        seconds = (self.now() - self.started) / self.weight * (self.whole - self.weight)
        return f"about {timedelta(seconds=round(seconds))} left of these"


def wait_for_others(trials: list[Trial], seconds: float = 60) -> None:
    """Wait for runs of a study that was killed: they save themselves, and end (see `_end_with_parent`).

    Raises:
        InputError: one is still there after so long.
    """
    for trial in trials:
        ends, said = time.monotonic() + seconds, False
        while who := holder(trial.run_dir) or holder(trial.run_dir / "heads"):
            if not said:
                say(f"{trial.run_dir}: waiting for {who}, which still writes there")
                said = True
            if time.monotonic() > ends:
                raise errors.InputError(f"{trial.run_dir}: {who} still writes there; end it, the same command goes on")
            time.sleep(0.2)


def _end_with_parent() -> None:
    """In a run's process: SIGTERM, by which it saves itself, when the study is killed (Linux's prctl)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(trial: Trial) -> subprocess.Popen:
    """The first of its commands, on one core, with its output in a file of the run folder."""
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
    return (output_of(trial).read_text().splitlines() or ["ended without a word"])[-1]
