"""The run folder: check it, list its checkpoints, lock it, and clean up after a killed run."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.distributed import log
from utils.errors import InputError
from utils.files import write_atomically
from utils.run.checkpoint import DRAFTS, LAST, PREVIOUS

LOCK = ".lock"


def check_resume(resume: str | None, run_dir: Path) -> None:
    """Check before a run starts that the checkpoint of --resume exists and that the run may write to its folder.

    Raises:
        InputError: the checkpoint does not exist, the run would overwrite another one, or the folder is not writable.
    """
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"run folder {run_dir}: {existing} is not a writable folder; choose another --run-dir")
    if resume == "auto":
        return
    if resume and not Path(resume).is_file():
        raise InputError(f"--resume {resume}: no such file, expected a checkpoint or 'auto'")
    if resumable_checkpoints(run_dir) and not (resume and Path(resume).resolve().parent == run_dir.resolve()):
        raise InputError(
            f"{run_dir}: holds a run already; continue it with --resume auto, or start another with --run-dir or --name"
        )


def check_fitted_run_dir(resume: str | None, run_dir: Path) -> None:
    """Check the run folder of a fitted classifier, which has no checkpoints; --resume auto repeats the fit.

    Raises:
        InputError: --resume names a checkpoint, or the folder already contains results or a trained run.
    """
    if resume not in (None, "auto"):
        raise InputError(f"--resume {resume}: a fitted head has no checkpoint to resume from; omit --resume")
    if resumable_checkpoints(run_dir):
        raise InputError(f"{run_dir}: holds a trained run; choose another folder with --run-dir or --name")
    if (run_dir / "results.json").exists() and resume is None:
        raise InputError(
            f"{run_dir}: holds results already; recompute them with --resume auto, or choose --run-dir or --name"
        )


def resumable_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run folder, the newest first."""
    kept = sorted(run_dir.glob("checkpoint_*.pth.tar"), reverse=True)
    return [path for path in (run_dir / LAST, run_dir / PREVIOUS, *kept) if path.exists()]


@contextmanager
def lock_run_dir(run_dir: Path, source: Path | None = None, broken: Iterable[Path] = ()) -> Iterator[None]:
    """Lock the run folder for the duration of the context, and create it if necessary.

    The operating system releases the lock when the process ends, for whatever reason. Half-written files of a killed
    run (drafts, see `utils.files`) are removed. Checkpoints that `load_run` could not read are renamed, so that they
    never replace a good one. If no last.pth.tar remains and the run resumes from a checkpoint of this folder, it is
    copied from this checkpoint.

    Args:
        run_dir: the run folder.
        source: the checkpoint that the run resumes from.
        broken: unreadable checkpoints.

    Raises:
        InputError: another run has locked the folder.
    """
    if distributed.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+") if distributed.is_main() else nullcontext() as file:
        owner = distributed.broadcast_object(_lock(file) if distributed.is_main() else None)
        if owner is not None:
            raise InputError(f"{run_dir}: another run is writing to this folder ({owner})")
        if distributed.is_main():
            _clean_up(run_dir, source, broken)
        yield


def lock_owner(run_dir: Path) -> str | None:
    """Return the process that has locked a run folder, or None."""
    if not (run_dir / LOCK).exists():
        return None
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed
        except (BlockingIOError, PermissionError):
            file.seek(0)
            return file.read().strip()
        except OSError:  # some network file systems have no locks
            return None
    return None


def _lock(file: TextIO) -> str | None:
    """Lock the file and write this process into it; if another process holds the lock, return that process."""
    try:
        # Loader workers do not inherit a record lock, so a worker that outlives the run does not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return file.read().strip()
    except OSError as error:  # some network file systems have no locks
        log(f"note: {file.name} cannot be locked ({error.strerror}); a second run could write to this folder")
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
            write_atomically(last, lambda file: shutil.copyfileobj(good, file))
        log(f"wrote {last} again, from {source.name}")
