"""The run folder: whose it is, which checkpoints lie in it, and what a kill has left there."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.distributed import say
from utils.errors import InputError
from utils.files import write_whole
from utils.run.checkpoint import DRAFTS, LAST, PREVIOUS

LOCK = ".lock"


def check_resume(resume: str | None, run_dir: Path) -> None:
    """Check, before anything is made, that the checkpoint is there and the folder is the run's to write.

    Raises:
        InputError: the file named is not there; the run would overwrite another; or the
            folder cannot be written.
    """
    there = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"run folder {run_dir}: {there} is no folder that can be written")
    if resume == "auto":
        return
    if resume and not Path(resume).is_file():
        raise InputError(f"--resume {resume}: no such file, expected a checkpoint or 'auto'")
    if candidates(run_dir) and not (resume and Path(resume).resolve().parent == run_dir.resolve()):
        raise InputError(
            f"{run_dir}: holds a run already; --resume auto continues it, --run-dir or --name starts another"
        )


def check_fit(resume: str | None, run_dir: Path) -> None:
    """The same of a run that has no checkpoints of its own, as it takes but seconds: --resume auto does it anew.

    Raises:
        InputError: the folder holds results, or a run with checkpoints; or there is a checkpoint to go on from.
    """
    if resume not in (None, "auto"):
        raise InputError(f"--resume {resume}: a head that is fitted has no checkpoint to go on from; leave it out")
    if candidates(run_dir):
        raise InputError(f"{run_dir}: holds a run that was trained; --run-dir or --name names another folder")
    if (run_dir / "results.json").exists() and resume is None:
        raise InputError(
            f"{run_dir}: holds results already; --resume auto makes them anew, --run-dir or --name goes elsewhere"
        )


def candidates(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first."""
    kept = sorted(run_dir.glob("checkpoint_*.pth.tar"), reverse=True)
    return [path for path in (run_dir / LAST, run_dir / PREVIOUS, *kept) if path.exists()]


@contextmanager
def hold(run_dir: Path, source: Path | None = None, broken: Iterable[Path] = ()) -> Iterator[None]:
    """Keep the run folder for this run: made if it is not there, and locked.

    The lock is the operating system's and goes with the process, however that ends.
    What a kill left half written is removed. Checkpoints that `load_run` could not read are
    renamed, so that they never take a good one's place; where no last.pth.tar is left, it is
    written anew from the one that the run goes on from.

    Raises:
        InputError: another run holds it.
    """
    if distributed.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+") if distributed.is_main() else nullcontext() as file:
        holder = distributed.same_on_all_ranks(_lock(file) if distributed.is_main() else None)
        if holder is not None:
            raise InputError(f"{run_dir}: another run is writing there ({holder})")
        if distributed.is_main():
            _clean_up(run_dir, source, broken)
        yield


def holder(run_dir: Path) -> str | None:
    """The process that holds a run folder now, if one does."""
    if not (run_dir / LOCK).exists():
        return None
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the file is closed
        except (BlockingIOError, PermissionError):
            file.seek(0)
            return file.read().strip()
        except OSError:  # some network file systems have no locks
            return None
    return None


def _lock(file: TextIO) -> str | None:
    """Lock the file and write this process into it; returns who else holds it."""
    try:
        # A record lock: loader workers do not inherit it, so none of them can outlive the run with it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return file.read().strip()
    except OSError as error:  # some network file systems have no locks
        say(f"note: {file.name} cannot be locked ({error.strerror}): nothing keeps a second run out of this folder")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return None


def _clean_up(run_dir: Path, source: Path | None, broken: Iterable[Path]) -> None:
    for draft in run_dir.glob(DRAFTS):
        draft.unlink()
    for path in broken:
        os.replace(path, path.with_name(path.name + ".broken"))
    last = run_dir / LAST
    if source and source.resolve().parent == run_dir.resolve() and not last.exists():
        with source.open("rb") as good:
            write_whole(last, lambda file: shutil.copyfileobj(good, file))
        say(f"wrote {last} anew, from {source.name}")
