"""Run the trials of a study in parallel, one core each, and keep their results in an archive."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from examples.results.study import TUNING, Study
from examples.results.trials import Trial, is_complete, is_finished, unfinished_part
from utils import errors
from utils.distributed import log
from utils.files import check_output
from utils.measure.results import format_markdown_table
from utils.run import checkpoint
from utils.run.folder import lock_owner, lock_run_dir

PR_SET_PDEATHSIG = 1
# Files of a finished trial in the archive. Only unfinished trials need the checkpoint and the cached features.
RESULT_FILES = ("args.json", "log.jsonl", "results.json", "features.npz")
SHARED_FILES = ("*.npy", "speed.json")  # targets, and the measured speed


@contextmanager
def open_study(study: Study, archive: Path | None = None) -> Iterator[None]:
    """Lock the study's folder for the block, and create the shared lists and targets. SIGTERM acts like Ctrl-C.

    Args:
        archive: Zip file. If it exists, the study continues from it. It is written when the block ends, even on error.
    """
    if archive:
        check_output("--archive", archive, overwrite=True)
    for number in errors.EXIT_CODES.keys() - {signal.SIGINT}:
        signal.signal(number, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    with lock_run_dir(study.folder):
        if archive and archive.exists():
            unpack_archive(archive, study.folder)
        study.prepare()
        try:
            yield
        finally:
            if archive:
                write_archive(study.folder, archive)
                log(f"wrote {archive}: copy this file to continue on another machine")


def run_stages(study: Study, jobs: int, minutes: float | None = None) -> None:
    """Run all stages of the study, `jobs` trials at a time. Stages can depend on the results of earlier ones.

    Args:
        minutes: Stop after this many minutes. Unfinished trials save a checkpoint.
    """
    deadline = time.monotonic() + 60 * (minutes or math.inf)
    try:
        for stage, trials in study.stages():
            unfinished = [remaining for trial in trials if (remaining := unfinished_part(trial)).commands]
            if unfinished:
                wait_for_earlier_runs(unfinished)
                log(f"{stage}: {len(unfinished)} of {len(trials)} trials to run, {jobs} at a time")
                run_all(unfinished, jobs, deadline)
            if stage.startswith(TUNING):
                log(study.describe_rates(stage))
    except OutOfTimeError:
        log(f"--minutes {minutes:g}: stopped; run the same command again to continue")


def describe_plan(study: Study) -> str:
    """Return a table of the stages of a study with the trials that remain. Seeds that may be added are not counted."""
    rows, seen, hours, assumed = [], set(), 0.0, False
    for stage, trials in study.stages():
        new_trials = [trial for trial in trials if trial.run_dir not in seen]  # a sweep shares runs with the methods
        seen |= {trial.run_dir for trial in new_trials}
        remaining = new_trials if assumed else [trial for trial in new_trials if unfinished_part(trial).commands]
        hours += study.hours(remaining)
        rows.append([stage, str(len(new_trials)), str(len(remaining)), f"{study.hours(remaining):.1f}"])
        if remaining and stage.startswith(TUNING):
            study.assume_rates()
            assumed = True
    rows.append(["all", str(len(seen)), str(sum(int(row[2]) for row in rows)), f"{hours:.1f}"])
    lines = [f"{study.plan.title}: {study.folder}, on {study.device}", ""]
    lines.append(format_markdown_table(["stage", "trials", "to run", "hours of training on one core"], rows))
    lines += ["", "methods: " + "; ".join(method.title for method in study.plan.methods.values())]
    lines.append(
        "hours: estimated from the runs in the folder (0.0 if there are none), without the fits of the classifiers"
    )
    return "\n".join(lines)


class OutOfTimeError(Exception):
    """The time limit of a study has passed."""


def run_all(trials: list[Trial], jobs: int, deadline: float = math.inf) -> None:
    """Run the trials, `jobs` at a time.

    If a trial fails, this process stops or the deadline passes, stop all trials. They save a checkpoint.

    Args:
        deadline: Value of time.monotonic().

    Raises:
        InputError: A trial failed, or stopped before its last epoch.
        OutOfTimeError: The deadline has passed.
    """
    waiting, running, estimate = deque(trials), {}, TimeEstimate(trials)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.popleft()
                running[start_trial(trial)] = trial
            time.sleep(0.2)
            if time.monotonic() > deadline:
                raise OutOfTimeError
            for process in [process for process in running if process.poll() is not None]:
                trial = running.pop(process)
                if process.returncode:
                    raise errors.InputError(
                        f"{trial.run_dir}: {failure_reason(process, trial)}. Its output is in {output_file(trial)}"
                    )
                if not is_finished(trial.commands[0]):  # a run that a signal stopped also exits with code 0
                    raise errors.InputError(
                        f"{trial.run_dir}: stopped before its last epoch. Run the same command again to continue"
                    )
                if later_commands := trial.commands[1:]:
                    waiting.appendleft(trial._replace(commands=later_commands))
                    continue
                estimate.add_finished(trial)
                log(f"[{estimate.done:>3}/{len(trials)}] {trial.run_dir}  {estimate.remaining()}")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


class TimeEstimate:
    """Estimate of the remaining time, from the weights of the trials that have finished so far."""

    def __init__(self, trials: list[Trial], now: Callable[[], float] = time.monotonic):
        self.now, self.started, self.done = now, now(), 0
        self.total_weight, self.weight = sum(trial.weight for trial in trials), 0.0

    def add_finished(self, trial: Trial) -> None:
        self.done, self.weight = self.done + 1, self.weight + trial.weight

    def remaining(self) -> str:
        seconds = (self.now() - self.started) / self.weight * (self.total_weight - self.weight)
        return f"about {timedelta(seconds=round(seconds))} remaining in this stage"


def wait_for_earlier_runs(trials: list[Trial], seconds: float = 60) -> None:
    """Wait until the runs of an earlier, killed study have saved and exited (see `_end_with_parent`).

    Raises:
        InputError: A run has not exited after this many seconds.
    """
    for trial in trials:
        deadline, logged = time.monotonic() + seconds, False
        while owner := lock_owner(trial.run_dir) or lock_owner(trial.run_dir / "heads"):
            if not logged:
                log(f"{trial.run_dir}: waiting for {owner} to finish writing")
                logged = True
            if time.monotonic() > deadline:
                raise errors.InputError(
                    f"{trial.run_dir}: {owner} is still writing. Stop it, and run the command again"
                )
            time.sleep(0.2)


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to a run when the study is killed, so that the run saves and exits (Linux prctl)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start_trial(trial: Trial) -> subprocess.Popen:
    """Start the first command of a trial with one thread. Append its output to a file in the run folder."""
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    with output_file(trial).open("a") as file:
        command = [sys.executable, *trial.commands[0]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        options = {"preexec_fn": _end_with_parent} if sys.platform == "linux" else {}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, **options)


def output_file(trial: Trial) -> Path:
    return trial.run_dir / "output.txt"


def failure_reason(process: subprocess.Popen, trial: Trial) -> str:
    """Return the signal that killed a process, or the last line of its output."""
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}"
    return (output_file(trial).read_text().splitlines() or ["ended without output"])[-1].removeprefix("error: ")


def write_archive(folder: Path, archive: Path) -> None:
    """Write the results of finished trials, and the checkpoints of others, into a zip file, atomically.

    Args:
        folder: Folder of the study.
    """
    new = archive.with_name(f"{archive.name}.new")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in _archived_files(folder):
            zipped.write(file, file.relative_to(folder))
    new.replace(archive)


def _archived_files(folder: Path) -> list[Path]:
    files = [file for pattern in SHARED_FILES for file in folder.glob(pattern)]
    for run_dir in sorted({file.parent for file in folder.glob("rho*/*/args.json")}):
        parts = [run_dir, run_dir / "heads"]
        files += [part / name for part in parts for name in RESULT_FILES if (part / name).exists()]
        if not is_complete(run_dir) and (run_dir / checkpoint.LAST).exists():
            files.append(run_dir / checkpoint.LAST)
    return files


def unpack_archive(archive: Path, folder: Path) -> None:
    """Write the files of an archive into the folder of the study. Existing files are kept.

    Raises:
        InputError: The file is not a zip file, or cannot be unpacked.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if not (folder / name).exists():
                    zipped.extract(name, folder)
    except (zipfile.BadZipFile, OSError) as error:
        raise errors.InputError(
            f"{archive}: cannot be unpacked into {folder} ({error}). Check the disk, or choose another file"
        ) from None
