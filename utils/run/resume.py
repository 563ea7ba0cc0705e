"""Resume a run: choose its checkpoint, and check that it matches the command line."""

import secrets
from collections.abc import Callable
from pathlib import Path

import torch

from utils import distributed
from utils.distributed import say
from utils.errors import InputError
from utils.run.arguments import LEGACY_DEFAULTS, changed, plain_args
from utils.run.checkpoint import load
from utils.run.folder import resumable_checkpoints
from utils.run.launch import Place
from utils.run.state import RunState

NEEDS = ("state_dict", "epoch", "optimizer")


def load_run(
    args,
    place: Place,
    read: Callable[[RunState], None] = lambda state: state.extra.clear(),
    before: dict = {},  # noqa: B006, it is never modified
) -> RunState:
    """Return the state of the checkpoint that a run resumes from, or the initial state of a new run.

    The state's seed, architecture and arguments are set to those of this start. With --resume auto, a checkpoint that
    cannot be read is reported and the previous one is used.

    Args:
        args: the run's arguments. place: this process's device and workers.
        read: checks and stores the method's own checkpoint entries; the default drops them.
        before: values of further arguments that old checkpoints do not contain.

    Raises:
        InputError: no checkpoint can be read, an argument that affects the result differs from the checkpoint's
            (without --override), or the processes found different checkpoints.
    """
    state = RunState(epoch=args.start_epoch)
    if args.resume == "auto" and resumable_checkpoints(Path(args.run_dir)):
        state = _newest_good(Path(args.run_dir))
    elif args.resume not in (None, "auto"):
        state = _read(Path(args.resume))
    _check_same_place(state, place.device)
    _check_same_arguments(state, args, before)
    read(state)
    then, now = state.processes, distributed.world_size()
    if then not in (None, now):
        say(f"note: {state.source} was written by {then} processes, now {now}; results are not bit-identical")
    state.seed, state.arch = resolve_seed(args.seed, state), args.arch
    state.args = plain_args(args) | {"device": str(place.device), "workers": place.workers, "seed": state.seed}
    return state


def _read(path: Path) -> RunState:
    return RunState.from_dict(load(path, NEEDS), path)


def _newest_good(run_dir: Path) -> RunState:
    *newer, oldest = resumable_checkpoints(run_dir)
    broken = []
    for path in newer:
        try:
            entries = load(path, NEEDS)
            break
        except InputError as error:
            say(f"note: {error}; trying the previous checkpoint")
            broken.append(path)
    else:
        path, entries = oldest, load(oldest, NEEDS)
    state = RunState.from_dict(entries, path)
    state.broken = broken
    return state


def check_epochs_left(state: RunState, epochs: int, ended: bool) -> None:
    """Raise InputError if no epoch remains to be trained; ended: the run was completed before, which is allowed."""
    if state.epoch >= epochs and not ended:
        raise InputError(f"--epochs {epochs}: {state.epoch} are done already, expected more")


def resolve_seed(given: int | None, state: RunState) -> int:
    """Return the checkpoint's seed; in a new run --seed, or a random seed, the same on all ranks.

    Raises:
        InputError: --seed differs from the checkpoint's seed.
    """
    if given is not None and state.seed not in (None, given):
        raise InputError(f"--seed {given}: the checkpoint was made with seed {state.seed}; omit --seed to resume")
    seed = given if state.seed is None else state.seed
    return distributed.same_on_all_ranks(secrets.randbelow(2**31)) if seed is None else seed


def _check_same_place(state: RunState, device: torch.device) -> None:
    mine = torch.tensor([[state.epoch, state.step]], device=device)
    places = distributed.gather(mine).tolist()
    if any(place != places[0] for place in places):
        raise InputError(
            f"the processes found checkpoints of (epoch, step) {places}; use one --run-dir that all of them share"
        )


def _check_same_arguments(state: RunState, args, before: dict) -> None:
    then, now = LEGACY_DEFAULTS | before | state.args if state.args else {}, plain_args(args)
    found = changed(then, now)
    if state.step and {"batch_size", "accum_steps", "train_list"} & found.keys():
        raise InputError(
            f"checkpoint {state.source}: is within an epoch, after {state.step} batches of {then['batch_size']}; "
            f"resume with -b {then['batch_size']} and the same training list, or from a checkpoint at the end of an "
            "epoch"
        )
    if found and not args.override:
        listed = ", ".join(f"{name} {change}" for name, change in found.items())
        raise InputError(
            f"checkpoint {state.source}: made with other arguments ({listed}); add --override to use the new ones"
        )
