"""Going on: which checkpoint a run continues from, whether it may, and who may write into its folder."""

import fcntl
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from utils import distributed
from utils.checkpoint import DRAFTS, LAST, PREVIOUS, load
from utils.errors import InputError
from utils.files import write_whole
from utils.logger import say
from utils.resolve import FREE, plain_args

NEEDS = ("state_dict", "epoch", "optimizer")
KINDS = {
    "epoch": int,
    "step": int,
    "seed": int,
    "processes": int,
    "queue_grid": int,
    "arch": str,
    "args": dict,
    "optimizer": dict,
    "results": dict,
    "means": dict | None,
    "assignment": torch.Tensor | None,
    "assignment_before": list | None,
}
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


def candidates(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first."""
    kept = sorted(run_dir.glob("checkpoint_*.pth.tar"), reverse=True)
    return [path for path in (run_dir / LAST, run_dir / PREVIOUS, *kept) if path.exists()]


def load_run(args) -> tuple[Path | None, dict]:
    """The checkpoint a run goes on from and its state; of a new run, None and where it starts.

    With --resume auto a checkpoint that cannot be read is reported, and the one before it taken.

    Returns:
        The path, and the state with at least `epoch` (whole epochs done), `step`
        (steps done in the next one) and `source` (the path).

    Raises:
        InputError: no checkpoint can be read; an argument that changes the result is not
            the checkpoint's (and no --override); or the processes do not all see the same one.
    """
    path, state = None, {"epoch": args.start_epoch}
    if args.resume == "auto" and candidates(Path(args.run_dir)):
        path, state = _newest_good(Path(args.run_dir))
    elif args.resume not in (None, "auto"):
        path = Path(args.resume)
        state = load(path, NEEDS)
    state.setdefault("step", 0)
    state["source"] = path
    _check_kinds(state, path)
    _check_same_place(state, args.device)
    _check_same_arguments(state, args, path)
    for name in ("assignment", "assignment_before"):
        _check_permutation(state, name, args.num_classes, path)
    then, now = state.get("processes", distributed.world_size()), distributed.world_size()
    if then != now:
        say(f"note: {then} processes wrote {path}, {now} go on: not bit for bit as they would have")
    return path, state


def _newest_good(run_dir: Path) -> tuple[Path, dict]:
    *newer, oldest = candidates(run_dir)
    broken = []
    for path in newer:
        try:
            return path, load(path, NEEDS) | {"broken": broken}
        except InputError as error:
            say(f"note: {error}; trying the one before")
            broken.append(path)
    return oldest, load(oldest, NEEDS) | {"broken": broken}


def _check_kinds(state: dict, path: Path | None) -> None:
    for name, kind in KINDS.items():
        if name in state and not (isinstance(state[name], kind) and not isinstance(state[name], bool)):
            raise InputError(f"checkpoint {path}: {name} is {str(state[name])[:60]}, expected {kind}")
    means = state.get("means")
    if means is not None and not (means.keys() == {"steps", "count", "sums"} and isinstance(means["sums"], dict)):
        raise InputError(f"checkpoint {path}: means is {str(means)[:60]}, expected steps, count and sums")
    if not all(isinstance(entry, dict) for entry in state.get("results", {}).values()):
        raise InputError(f"checkpoint {path}: results is {str(state['results'])[:60]}, expected a table of tables")
    if min(state["epoch"], state["step"]) < 0:
        raise InputError(f"checkpoint {path}: epoch {state['epoch']} and step {state['step']}, expected 0 or more")


def _check_permutation(state: dict, name: str, num_classes: int, path: Path | None) -> None:
    """Of the classes' targets, if there is one."""
    if (values := state.get(name)) is None:
        return
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    if not (
        isinstance(values, list) and all(type(v) is int for v in values) and sorted(values) == list(range(num_classes))
    ):
        raise InputError(
            f"checkpoint {path}: {name} is {str(values)[:60]}, expected each of {num_classes} targets once"
        )


def check_step(state: dict, steps: int) -> None:
    """Refuse a checkpoint that stands beyond the end of its epoch of so many steps.

    Raises:
        InputError: it does.
    """
    if state["step"] > steps:
        raise InputError(
            f"checkpoint {state['source']}: step {state['step']} of an epoch of {steps}; it is damaged: take another"
        )


def queue_grid(state: dict, batch_size: int) -> int:
    """What the queue's pointer is a multiple of: the greatest common divisor of all its global batches.

    1 of a checkpoint that does not say in what batches its queue was filled, as the release's.
    """
    if state["source"] is None:
        return batch_size
    then = state.get("queue_grid", state.get("args", {}).get("batch_size"))
    return math.gcd(batch_size, then if type(then) is int else 1)


def check_queue(model: nn.Module, grid: int, source: Path) -> None:
    """Check a queue that was loaded: where its pointer stands, and whose keys it holds.

    Args:
        model: with `queue_ptr` (1,), `queue_labels` (1, Q) and `class_centroid` (C, D). grid: see `queue_grid`.

    Raises:
        InputError: a pointer or a label that no run writes.
    """
    pointer, length = int(model.queue_ptr), model.queue_labels.numel()
    if not 0 <= pointer < length or pointer % grid:
        raise InputError(
            f"checkpoint {source}: queue_ptr is {pointer}, expected 0 to {length - 1} and a multiple of {grid}, as its "
            "batches are; it is damaged: take another"
        )
    classes = len(model.class_centroid)
    wrong = model.queue_labels[(model.queue_labels < -1) | (model.queue_labels >= classes)]
    if len(wrong):
        raise InputError(
            f"checkpoint {source}: {len(wrong)} of {length} queue_labels are none, the first {int(wrong[0])}, expected "
            f"-1 (empty) to {classes - 1}; it is damaged: take another"
        )


def _check_same_place(state: dict, device: torch.device) -> None:
    mine = torch.tensor([[state["epoch"], state["step"]]], device=device)
    places = distributed.gather(mine).tolist()
    if any(place != places[0] for place in places):
        raise InputError(
            f"the processes found checkpoints of (epoch, step) {places}: the run folder must be one for all"
        )


def _check_same_arguments(state: dict, args, path: Path | None) -> None:
    then, now = state.get("args", {}), plain_args(args)
    changed = [name for name in sorted(then.keys() & now.keys() - FREE) if then[name] != now[name]]
    if state["step"] and {"batch_size", "train_list"} & set(changed):
        raise InputError(
            f"checkpoint {path}: stands within an epoch, {state['step']} batches of {then['batch_size']} into it; "
            f"go on with -b {then['batch_size']} and the training list it was made with, or from a checkpoint of an "
            "epoch's end"
        )
    if changed and not args.override:
        listed = ", ".join(f"{name} {then[name]} -> {now[name]}" for name in changed)
        raise InputError(f"checkpoint {path}: made with other arguments ({listed}); --override goes on with the new")


@contextmanager
def hold(run_dir: Path, state: dict) -> Iterator[None]:
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
            _clean_up(run_dir, state)
        yield


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


def _clean_up(run_dir: Path, state: dict) -> None:
    for draft in run_dir.glob(DRAFTS):
        draft.unlink()
    for path in state.get("broken", ()):
        os.replace(path, path.with_name(path.name + ".broken"))
    source, last = state.get("source"), run_dir / LAST
    if source and source.resolve().parent == run_dir.resolve() and not last.exists():
        with source.open("rb") as good:
            write_whole(last, lambda file: shutil.copyfileobj(good, file))
        say(f"wrote {last} anew, from {source.name}")
