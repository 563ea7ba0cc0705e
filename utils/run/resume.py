"""Going on: which checkpoint a run continues from, and whether it may."""

import secrets
from collections.abc import Callable
from pathlib import Path

import torch

from utils import distributed
from utils.distributed import say
from utils.errors import InputError
from utils.run.arguments import BEFORE, changed, plain_args
from utils.run.checkpoint import load
from utils.run.folder import candidates
from utils.run.launch import Place
from utils.run.state import RunState

NEEDS = ("state_dict", "epoch", "optimizer")


def load_run(
    args,
    place: Place,
    read: Callable[[RunState], None] = lambda state: state.extra.clear(),
    before: dict = {},  # noqa: B006, it is not written to
) -> RunState:
    """Where a run goes on: its checkpoint's state; or of a new run, where it starts. Then with its own arguments.

    With --resume auto a checkpoint that cannot be read is reported, and the one before it taken.

    Args:
        args: of the run. place: of this process. read: checks and notes the entries that are the method's
            own; without one there are none, and what a file has besides is not carried on. before: more arguments
            that old checkpoints do not say, as they were.

    Raises:
        InputError: no checkpoint can be read; an argument that changes the result is not
            the checkpoint's (and no --override); or the processes do not all see the same one.
    """
    state = RunState(epoch=args.start_epoch)
    if args.resume == "auto" and candidates(Path(args.run_dir)):
        state = _newest_good(Path(args.run_dir))
    elif args.resume not in (None, "auto"):
        state = _read(Path(args.resume))
    _check_same_place(state, place.device)
    _check_same_arguments(state, args, before)
    read(state)
    then, now = state.processes, distributed.world_size()
    if then not in (None, now):
        say(f"note: {then} processes wrote {state.source}, {now} go on: not bit for bit as they would have")
    state.seed, state.arch = resolve_seed(args.seed, state), args.arch
    state.args = plain_args(args) | {"device": str(place.device), "workers": place.workers, "seed": state.seed}
    return state


def _read(path: Path) -> RunState:
    return RunState.from_dict(load(path, NEEDS), path)


def _newest_good(run_dir: Path) -> RunState:
    *newer, oldest = candidates(run_dir)
    broken = []
    for path in newer:
        try:
            entries = load(path, NEEDS)
            break
        except InputError as error:
            say(f"note: {error}; trying the one before")
            broken.append(path)
    else:
        path, entries = oldest, load(oldest, NEEDS)
    state = RunState.from_dict(entries, path)
    state.broken = broken
    return state


def check_epochs_left(state: RunState, epochs: int, ended: bool) -> None:
    """Refuse a run that has no epoch left to train and nothing to finish; ended: whether it has been here before.

    Raises:
        InputError: it is such a one.
    """
    if state.epoch >= epochs and not ended:
        raise InputError(f"--epochs {epochs}: {state.epoch} are done, none is left to train")


def resolve_seed(given: int | None, state: RunState) -> int:
    """The seed of the checkpoint that a run goes on from, or --seed, or one drawn, the same on all ranks.

    Raises:
        InputError: --seed is given and is not the checkpoint's.
    """
    if given is not None and state.seed not in (None, given):
        raise InputError(f"--seed {given}: the checkpoint was made with seed {state.seed}; leave --seed out to go on")
    seed = given if state.seed is None else state.seed
    return distributed.same_on_all_ranks(secrets.randbelow(2**31)) if seed is None else seed


def _check_same_place(state: RunState, device: torch.device) -> None:
    mine = torch.tensor([[state.epoch, state.step]], device=device)
    places = distributed.gather(mine).tolist()
    if any(place != places[0] for place in places):
        raise InputError(
            f"the processes found checkpoints of (epoch, step) {places}: the run folder must be one for all"
        )


def _check_same_arguments(state: RunState, args, before: dict) -> None:
    then, now = BEFORE | before | state.args if state.args else {}, plain_args(args)
    found = changed(then, now)
    if state.step and {"batch_size", "accum_steps", "train_list"} & found.keys():
        raise InputError(
            f"checkpoint {state.source}: stands within an epoch, {state.step} batches of {then['batch_size']} into it; "
            f"go on with -b {then['batch_size']} and the training list it was made with, or from a checkpoint of an "
            "epoch's end"
        )
    if found and not args.override:
        listed = ", ".join(f"{name} {change}" for name, change in found.items())
        raise InputError(
            f"checkpoint {state.source}: made with other arguments ({listed}); --override goes on with the new"
        )
