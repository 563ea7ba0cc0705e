"""Load a method and its model from a stage-1 checkpoint."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.methods import METHODS, add_method_arguments
from moco.methods.base import Method
from utils.cli.flags import describe_arguments
from utils.cli.parser import Parser
from utils.errors import InputError, first_line, short_repr
from utils.run import checkpoint
from utils.run.state import RunState


def load_projection_and_targets(path: Path) -> tuple[nn.Module, Tensor]:
    """Load the projection head and the class targets of a TSC checkpoint.

    Returns:
        The head, mapping (N, d) to (N, D), and the target of each class, (C, D), both on the CPU.

    Raises:
        InputError: As `load_method`, or if the checkpoint is not from the TSC phase.
    """
    method = load_method(path, torch.device("cpu"))
    if (targets_and_cosines := method.class_targets_and_cosines()) is None:
        raise InputError(f"checkpoint {path}: uses no targets, expected a checkpoint from the TSC phase")
    return method.model.encoder_q.fc, targets_and_cosines[0]


def load_method(path: Path, device: torch.device) -> Method:
    """Load a stage-1 checkpoint of this project. Return its method, whose `model` has the weights, on the device.

    Raises:
        InputError: If the file does not exist or is not a valid stage-1 checkpoint.
    """
    state = RunState.from_dict(checkpoint.read_checkpoint(path, needs=("state_dict", "epoch", "args")), path)
    parser = Parser(add_help=False)
    add_method_arguments(parser, parser)
    legacy = describe_arguments(parser, Namespace()).legacy
    args = legacy | state.args | {"targets": None}  # the checkpoint contains its targets
    if "loss" not in args or args["contrast"] not in list(METHODS):
        found = f"--contrast {args['contrast']}" if "loss" in args else "no --loss"
        raise InputError(
            f"checkpoint {path}: {found}, expected a stage-1 checkpoint of --contrast {' or '.join(METHODS)}"
        )
    kind = METHODS[args["contrast"]].load()
    for name, (tensor, axis) in kind.stored_sizes.items():  # before memory is allocated for these sizes
        length = state.weights[tensor].shape[axis : axis + 1] if tensor in state.weights else ()
        if length != (args.get(name),):
            found = f"{name} in args is {short_repr(args.get(name))}, but {tensor} has size {[*length]}"
            raise InputError(f"checkpoint {path}: {found}, expected a stage-1 checkpoint")
    try:
        method = kind(Namespace(**args))
        method.check_extra_state(state, args["num_classes"])
        state.load_weights(method.build(args["num_classes"], state, device).to(device))
        method.load_extra_state(state)
        if state.phase:  # the KCL phase of a TSC run uses no targets yet
            method.begin_phase(state.phase, fresh=False)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:  # wrong types in args
        raise InputError(f"checkpoint {path}: args is not what stage 1 writes ({first_line(error)})") from None
    return method
