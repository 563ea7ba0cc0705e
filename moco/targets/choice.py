"""Which targets a run has: its checkpoint's, or a file's."""

from pathlib import Path

import torch
from torch import Tensor

from moco.targets.files import check_targets, load_targets, target_file_name
from moco.targets.generation import TEMPERATURE, brief, generate_file
from utils import distributed
from utils.distributed import say
from utils.errors import InputError
from utils.run.state import RunState


def target_file(args, num_classes: int) -> Path:
    """The file of --targets, or the one of the default name in this folder."""
    return Path(args.targets or target_file_name(num_classes, args.moco_dim))


def choose_targets(args, num_classes: int, state: RunState, device: torch.device) -> Tensor:
    """The targets of a TSC run, (C, D) float32, in a line that says which: the checkpoint's, else a file's.

    A file that is not there is made, on the device. With --override a file that --targets names takes the place of the
    checkpoint's; those are then taken out of `state`, with what was assigned of them, to be solved anew.

    Raises:
        InputError: without --override, the named file's targets are others than the checkpoint's; or they do not fit.
    """
    held = _held_targets(args, num_classes, state)
    targets, source = held, f"those of {state.source}"
    if args.targets or held is None:
        targets, source = _file_targets(args, num_classes, device), str(target_file(args, num_classes))
    if held is not None and not torch.equal(targets, held):
        if not args.override:
            raise InputError(
                f"--targets {args.targets}: other targets than those of {state.source}; leave --targets out to go on "
                "with the checkpoint's, or give --override to go on with the file's"
            )
        state.weights.pop("optimal_target")
        state.extra |= {"assignment": None, "assignment_before": None}
        source += f", in place of those of {state.source}"
    if distributed.is_main():  # a second of the host's, with 8142 classes
        say(f"targets: {source}; {brief(targets, TEMPERATURE)}")
    return targets


def _held_targets(args, num_classes: int, state: RunState) -> Tensor | None:
    """The targets in a checkpoint, (C, D) float32, one copy of each; None: it has none."""
    copies = state.weights.get("optimal_target")
    if copies is None:
        return None
    expected = (num_classes * args.tr, args.moco_dim)
    if tuple(copies.shape) != expected:
        raise InputError(
            f"checkpoint {state.source}: does not fit the model: its targets have shape {tuple(copies.shape)}, "
            f"expected {expected}; check --dataset, --moco-dim and --tr"
        )
    held = copies[:: args.tr].float()
    check_targets(held, num_classes, args.moco_dim, source=f"checkpoint {state.source}: its targets")
    return held


def _file_targets(args, num_classes: int, device: torch.device) -> Tensor:
    file, size = target_file(args, num_classes), (num_classes, args.moco_dim)
    with distributed.main_process_first():
        if not file.exists():
            say(f"{file}: not there yet, making it")
            generate_file(file, *size, device=device)
    # Rank 0's for all: machines that do not share a folder may have made different ones.
    return distributed.same_on_all_ranks(load_targets(file, *size))
