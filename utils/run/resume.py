"""Resume a run: choose its checkpoint, and check that it matches the command line."""

import secrets
from collections.abc import Callable
from pathlib import Path

import torch

from utils import distributed
from utils.distributed import collectives, log
from utils.distributed.launch import ProcessInfo
from utils.errors import InputError
from utils.run.checkpoint import read_checkpoint
from utils.run.folder import resumable_checkpoints
from utils.run.session import RunPlan
from utils.run.state import RunState

NEEDS = ("state_dict", "epoch", "optimizer")


def load_run(
    plan: RunPlan,
    process: ProcessInfo,
    check_extra_state: Callable[[RunState], None] = lambda state: state.extra.clear(),
) -> RunState:
    """Return the state of the checkpoint that a run resumes from, or the initial state of a new run.

    The state's architecture and arguments are set to those of the plan; its seed is that of the checkpoint, of
    --seed, or random. With --resume auto, a checkpoint that
    cannot be read is reported, and the previous one is used.

    Args:
        plan: the run's plan.
        process: this process's device and workers.
        check_extra_state: checks the method's own checkpoint entries, `state.extra`; the default drops them.

    Raises:
        InputError: no checkpoint can be read, an argument that affects the result differs from the checkpoint's
            (without --override), or the processes found different checkpoints.
    """
    state = RunState(epoch=plan.start_epoch)
    if plan.resume == "auto" and resumable_checkpoints(plan.run_dir):
        state = _newest_valid(plan.run_dir)
    elif plan.resume not in (None, "auto"):
        state = _read(Path(plan.resume))
    _check_same_position(state, process.device)
    _check_same_arguments(state, plan)
    check_extra_state(state)
    stored, current = state.processes, distributed.world_size()
    if stored not in (None, current):
        log(f"note: {state.source} was written by {stored} processes, now {current}; results are not bit-identical")
    state.seed, state.arch = resolve_seed(plan.seed, state), plan.arch
    decided = {"device": str(process.device), "workers": process.workers, "seed": state.seed}
    state.args = plan.arguments.with_values(**decided).values
    return state


def _read(path: Path) -> RunState:
    return RunState.from_dict(read_checkpoint(path, NEEDS), path)


def _newest_valid(run_dir: Path) -> RunState:
    *newer, oldest = resumable_checkpoints(run_dir)
    broken = []
    for path in newer:
        try:
            entries = read_checkpoint(path, NEEDS)
            break
        except InputError as error:
            log(f"note: {error}; trying the previous checkpoint")
            broken.append(path)
    else:
        path, entries = oldest, read_checkpoint(oldest, NEEDS)
    state = RunState.from_dict(entries, path)
    state.broken = broken
    return state


def check_epochs_left(state: RunState, epochs: int, ended: bool) -> None:
    """Raise InputError if no epoch remains to be trained.

    ended: whether the run is complete in its folder. It may then be started again, and trains nothing.
    """
    if state.epoch >= epochs and not ended:
        raise InputError(f"--epochs {epochs}: {state.epoch} are done already, expected more")


def resolve_seed(given: int | None, state: RunState) -> int:
    """Return the checkpoint's seed. In a new run, return --seed or a random seed, which is the same on all ranks.

    Raises:
        InputError: --seed differs from the checkpoint's seed.
    """
    if given is not None and state.seed not in (None, given):
        raise InputError(f"--seed {given}: the checkpoint was made with seed {state.seed}; omit --seed to resume")
    seed = given if state.seed is None else state.seed
    return distributed.broadcast_object(secrets.randbelow(2**31)) if seed is None else seed


def _check_same_position(state: RunState, device: torch.device) -> None:
    """Raise InputError if the ranks have found checkpoints of different positions in the run."""
    position = torch.tensor([[state.epoch, state.step]], device=device)
    positions = collectives.gather(position).tolist()
    if any(position != positions[0] for position in positions):
        raise InputError(
            f"the processes found checkpoints of (epoch, step) {positions}; use one --run-dir that all of them share"
        )


def _check_same_arguments(state: RunState, plan: RunPlan) -> None:
    changes = plan.arguments.changes_since(state.args) if state.args else {}  # the authors' checkpoints have none
    if state.step and {"batch_size", "accum_steps", "train_list"} & changes.keys():
        batches = f"-b {state.args.get('batch_size')} --accum-steps {state.args.get('accum_steps', 1)}"
        raise InputError(
            f"checkpoint {state.source}: is within an epoch, after {state.step} steps with {batches}; resume with "
            "these flags and the same training list, or from a checkpoint at the end of an epoch"
        )
    if changes and not plan.override:
        listed = ", ".join(f"{name} {change}" for name, change in changes.items())
        raise InputError(
            f"checkpoint {state.source}: made with other arguments ({listed}); add --override to use the new ones"
        )
