"""Training methods of stage 1, by --contrast name. To add one, write a module here and add a row to METHODS."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.methods.base import Method
from moco.methods.batch_method import BatchMethod
from moco.methods.queue_method import QueueMethod
from utils.errors import InputError, first_line, short_repr
from utils.parser import FlagConditions, Group, Parser
from utils.run import checkpoint
from utils.run.state import RunState

# Values of the methods' arguments for old checkpoints, which do not contain these arguments.
METHOD_LEGACY_DEFAULTS = {
    "contrast": "queue",
    "kcl_epochs": None,
    "init_from": None,
    "sampling": "instance",
} | dict.fromkeys(("only_t", "unbiased", "sync_bn", "keep_last", "grad_checkpointing"), False)
METHOD_LEGACY_DEFAULTS |= {"accum_steps": 1, "lr_backbone": 1.0, "freeze": []}

METHODS: dict[str, type[Method]] = {
    "queue": QueueMethod,
    "batch": BatchMethod,
}


def add_method_arguments(parser: Parser, model: Group) -> None:
    """Add --contrast and the flags of all methods. model: the group of flags that describe the network."""
    loss = parser.add_argument_group("Loss")
    descriptions = "\n".join(f"{name}: {method.help}" for name, method in METHODS.items())
    loss.add_argument(
        "--contrast",
        choices=list(METHODS),
        default="queue",
        metavar="NAME",
        help=f"Images to contrast with.\n{descriptions}",
    )
    for add in dict.fromkeys(add for method in METHODS.values() for add in method.argument_adders):
        add(model, loss)


def ignored_flags(args) -> FlagConditions:
    """Return the flags that are ignored because of other flags."""
    return METHODS[args.contrast].ignored_flags(args)


def unsupported_flags(args) -> FlagConditions:
    """Return the flags of other methods that the selected method does not support."""
    supported = _flags(METHODS[args.contrast])
    others = set().union(*(_flags(method) for method in METHODS.values())) - supported
    return [(f"with --contrast {args.contrast}", others)]


def _flags(method: type[Method]) -> set[str]:
    scratch = Parser(add_help=False)
    for add in method.argument_adders:
        add(scratch, scratch)
    return {action.dest for action in scratch._actions}


def build_method(args) -> Method:
    return METHODS[args.contrast](args)


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
    args = METHOD_LEGACY_DEFAULTS | state.args | {"targets": None}  # the checkpoint contains its targets
    if "loss" not in args or args["contrast"] not in list(METHODS):
        found = f"--contrast {args['contrast']}" if "loss" in args else "no --loss"
        raise InputError(
            f"checkpoint {path}: {found}, expected a stage-1 checkpoint of --contrast {' or '.join(METHODS)}"
        )
    for name, (tensor, axis) in METHODS[
        args["contrast"]
    ].stored_sizes.items():  # before memory is allocated for these sizes
        length = state.weights[tensor].shape[axis : axis + 1] if tensor in state.weights else ()
        if length != (args.get(name),):
            found = f"{name} in args is {short_repr(args.get(name))}, but {tensor} has size {[*length]}"
            raise InputError(f"checkpoint {path}: {found}, expected a stage-1 checkpoint")
    try:
        method = METHODS[args["contrast"]](Namespace(**args))
        method.check_extra_state(state)
        state.load_weights(method.build(method.args.num_classes, state, device).to(device))
        method.load_extra_state(state)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:  # wrong types in args
        raise InputError(f"checkpoint {path}: args is not what stage 1 writes ({first_line(error)})") from None
    return method
