"""The run folder: check it, list its checkpoints, lock it, and clean up after a killed run."""

import errno
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.cli.flags import Arguments
from utils.distributed import log
from utils.errors import InputError
from utils.files import check_writable_folder, file_problem, write_atomically
from utils.run.checkpoint import DRAFTS, LAST, PREVIOUS, read_file
from utils.safe_load import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
RESULTS = ("results.json", "model_best.pth.tar", "features.npz")  # files of finished measurements


def default_run_dir(parent: str | Path, name: str, suffix: str) -> str:
    """Return the folder of a run without --run-dir: `name` in `parent`, followed by `_suffix` with --name.

    Earlier versions, as the TSC authors' code, ended a name without suffix in "_". If only that folder exists, it is
    returned, so that the same command continues its run.
    """
    run_dir, earlier = Path(parent) / (f"{name}_{suffix}" if suffix else name), Path(parent) / f"{name}_"
    return str(earlier if not suffix and earlier.exists() and not run_dir.exists() else run_dir)


def check_run_dir(arguments: Arguments, fitted: bool = False) -> None:
    """Check before a run starts that it may write to its folder, and that the checkpoint of --resume exists.

    A run may write to a folder that holds no run, or continue the run that the folder holds. args.json describes this
    run. A folder holds a run if it contains a checkpoint, results, or the log of more than one epoch.

    Args:
        arguments: the arguments of the run; run_dir and resume must be among them.
        fitted: whether the run fits classifiers. It has no checkpoints, and --resume auto repeats the fit.

    Raises:
        InputError: the checkpoint does not exist, the folder is not writable, or it holds another run.
    """
    run_dir, resume = Path(arguments.values["run_dir"]), arguments.values["resume"]
    check_writable_folder(run_dir, "run folder", "choose another --run-dir")
    if fitted and resume not in (None, "auto"):
        raise InputError(f"--resume {resume}: a fitted head has no checkpoint to resume from; omit --resume")
    if resume not in (None, "auto") and (problem := file_problem(resume)):
        raise InputError(f"--resume {resume}: {problem}, expected a checkpoint or 'auto'")
    has_checkpoint, has_results = bool(resumable_checkpoints(run_dir)), _has_results(run_dir)
    if not (has_checkpoint or has_results):
        return
    stored, other = _stored_args(run_dir), "choose another folder with --run-dir or --name"
    if stored is not None and (kind := _kind(stored)) != _kind(arguments.values):
        raise InputError(f"{run_dir}: holds {kind}, expected {_kind(arguments.values)}; {other}")
    if fitted and has_checkpoint:
        raise InputError(f"{run_dir}: holds a trained run; {other}")
    if not resume or (resume != "auto" and Path(resume).resolve().parent != run_dir.resolve()):
        raise InputError(f"{run_dir}: holds a run already; continue it with --resume auto, or {other}")
    if fitted:
        _check_same_fit(arguments, run_dir, stored)
    elif resume == "auto" and not has_checkpoint:
        raise InputError(f"{run_dir}: holds the results of a run, but no checkpoint to resume from; {other}")


def _check_same_fit(arguments: Arguments, run_dir: Path, stored: dict | None) -> None:
    """Raise InputError if a folder holds the results of a fit with other arguments, unless --override is given."""
    if stored is None:
        raise InputError(f"{run_dir}: holds results, but no readable args.json; choose another folder with --run-dir")
    changes, seed = arguments.changes_since(stored), arguments.values.get("seed")
    if seed not in (None, stored.get("seed")):
        changes["seed"] = f"{stored.get('seed')} -> {seed}"
    if changes and not arguments.values.get("override"):
        listed = ", ".join(f"{name} {change}" for name, change in changes.items())
        # Not every command that fits classifiers has --override.
        override = ", or add --override to replace them" if "override" in arguments.values else ""
        raise InputError(
            f"{run_dir}: holds results of other arguments ({listed}); choose another folder with --run-dir{override}"
        )


def _has_results(run_dir: Path) -> bool:
    log_file = run_dir / "log.jsonl"
    epochs = len(log_file.read_bytes().splitlines()) if log_file.is_file() else 0
    # A run that was killed before its first checkpoint can have logged one epoch.
    return epochs > 1 or any((run_dir / name).exists() for name in RESULTS)


def _stored_args(run_dir: Path) -> dict | None:
    """Return the arguments in args.json, or None if the file is missing or damaged."""
    with suppress(InputError):
        args = read_json(run_dir / "args.json").get("args")
        return args if isinstance(args, dict) else None
    return None


def _kind(args: dict) -> str:
    """Return the kind of the run with these arguments. Runs of different kinds write different files."""
    if "pretrained" not in args:
        return "a run of stage 1"
    if args.get("compare_heads"):
        return "a comparison of classifiers"
    return "a classifier of a pre-trained encoder" if args["pretrained"] else "a baseline without pre-training"


def resumable_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run folder, the newest first."""
    kept = sorted(run_dir.glob("checkpoint_*.pth.tar"), reverse=True)
    return [path for path in (run_dir / LAST, run_dir / PREVIOUS, *kept) if path.exists()]


def resumed_arguments(resume: str | None, run_dir: Path) -> dict | None:
    """Return the arguments in the checkpoint that --resume continues from, or None if the run is new.

    They are {} if the checkpoint has none, as those of the authors' code. Unreadable checkpoints are skipped here.
    """
    paths = resumable_checkpoints(run_dir) if resume == "auto" else [Path(resume)] if resume else []
    for path in paths:
        with suppress(InputError):  # reported when the run starts
            args = read_file(path).get("args")
            return args if isinstance(args, dict) else {}
    return None


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
            _lock_exclusively(file)  # released when the file is closed
        except (BlockingIOError, PermissionError):
            file.seek(0)
            return file.read().strip()
        except OSError:  # see _lock_exclusively
            return None
    return None


def _lock(file: TextIO) -> str | None:
    """Lock the file and write this process into it; if another process holds the lock, return that process."""
    try:
        _lock_exclusively(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return file.read().strip()
    except OSError as error:
        log(f"note: {file.name} cannot be locked ({error.strerror}); a second run could write to this folder")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return None


def _lock_exclusively(file: TextIO) -> None:
    """Lock a file. Loader workers do not inherit the lock, so a worker that outlives the run does not keep it.

    Raises:
        BlockingIOError, PermissionError: another process holds the lock.
        OSError: locks are not supported, by Windows or by some network file systems.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no file locks of POSIX")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
