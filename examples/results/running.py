"""Run the trials of a study in parallel, one core each, and keep their results in an archive."""

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from examples.results.study import TUNING, Study
from examples.results.trials import TimeEstimate, Trial, is_complete, is_finished, unfinished_part
from utils import errors
from utils.distributed import log
from utils.files import check_output, check_writable_folder, write_atomically
from utils.measure import feature_file
from utils.report.runs import read_stage
from utils.run import checkpoint
from utils.run.folder import lock_owner, lock_run_dir

PR_SET_PDEATHSIG = 1
RESULT_FILES = ("args.json", "log.jsonl", "results.json")  # of each command of a trial
SHARED_FILES = ("*.npy",)  # targets
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)  # of a zip file


@contextmanager
def open_study(study: Study, archive: Path | None = None) -> Iterator[None]:
    """Lock the study's folder for the block, and create the shared lists and targets. SIGTERM acts like Ctrl-C.

    Args:
        archive: Zip file. If it exists, the study continues from it. It is written when the block ends, even on error.
    """
    if archive:
        check_output("--archive", archive, overwrite=True)
        check_writable_folder(archive.parent, "folder of --archive", "choose another file")
    for number in errors.EXIT_CODES.keys() - {signal.SIGINT}:
        signal.signal(number, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    with lock_run_dir(study.folder):
        if archive and archive.exists():
            unpack_archive(archive, study)
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
    """Write the results of a study's finished trials, and the checkpoints of others, into a zip file, atomically."""

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in _archived_files(folder):
                zipped.write(file, file.relative_to(folder))

    write_atomically(archive, write)


def _archived_files(folder: Path) -> list[Path]:
    files = [file for pattern in SHARED_FILES for file in folder.glob(pattern)]
    for run_dir in sorted({file.parent for file in folder.glob("rho*/*/args.json")}):
        run_files = [part / name for part in (run_dir, run_dir / "heads") for name in RESULT_FILES]
        if not is_complete(run_dir):  # it continues with these files
            run_files += [run_dir / checkpoint.LAST, run_dir / feature_file.NAME]
        elif read_stage(run_dir).args.get("targeted"):  # the page compares the features with the targets
            run_files.append(run_dir / feature_file.NAME)
        files += [file for file in run_files if file.exists()]
    return files


def unpack_archive(archive: Path, study: Study) -> None:
    """Write the trials of an archive into the folder of the study. If the folder has a trial too, keep the later state.

    Raises:
        InputError: The file is not an archive of the study. Nothing has been written.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=study.folder) as draft:
        unpacked = Study(study.plan, Path(draft), study.device)
        try:
            with zipfile.ZipFile(archive) as zipped:
                _check_names(zipped.namelist())
                zipped.extractall(draft)
            archived = {file.parent for file in unpacked.folder.glob("rho*/*/args.json")}
            if archived and not archived & _checked_runs(unpacked):
                raise errors.InputError(f"it has no run of {study.plan.title}")
        except (*DAMAGES, errors.InputError) as error:
            if isinstance(error, OSError) and error.errno in errors.DISK_FULL:
                raise
            reason = str(error).replace(f"{draft}/", "")
            raise errors.InputError(
                f"{archive}: not an archive of this study ({reason}). Choose another file"
            ) from None
        _checked_runs(study)  # a run with other arguments is not replaced
        for new in [*archived, *(file for pattern in SHARED_FILES for file in unpacked.folder.glob(pattern))]:
            old = study.folder / new.relative_to(draft)
            if new in archived and _progress(new) > _progress(old):
                shutil.rmtree(old, ignore_errors=True)
            if not old.exists():
                old.parent.mkdir(exist_ok=True)
                new.replace(old)


def _checked_runs(study: Study) -> set[Path]:
    """Return the folders of all trials of a study. Raise InputError if one contains a run with other arguments."""
    run_dirs = set()
    for stage, trials in study.stages():
        unfinished = [trial for trial in trials if unfinished_part(trial).commands]
        run_dirs |= {trial.run_dir for trial in trials}
        if unfinished and stage.startswith(TUNING):  # the learning rates of later stages are not known
            break
    return run_dirs


def _check_names(names: list[str]) -> None:
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in ("rho*/*", *SHARED_FILES)):
            raise errors.InputError(f"it contains {name}")


def _progress(run_dir: Path) -> tuple[bool, bool, int]:
    """Return the progress of a trial, to compare two states of it: the finished commands, and the logged epochs."""
    log_file = run_dir / "log.jsonl"
    epochs = len(log_file.read_bytes().splitlines()) if log_file.exists() else -1
    return is_complete(run_dir), (run_dir / "results.json").exists(), epochs
