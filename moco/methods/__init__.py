"""Training methods of stage 1, by --contrast name. To add one, write a module here and add a row to METHODS."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.methods.base import Method
from moco.methods.batch import Batch
from moco.methods.queue import Queue
from utils.errors import InputError, brief, first_line
from utils.parser import Cases, Group, Parser
from utils.run import checkpoint
from utils.run.state import RunState

# Values of the methods' arguments for old checkpoints, which do not contain these arguments.
LEGACY_DEFAULTS = {"contrast": "queue", "kcl_epochs": None, "init_from": None, "sampling": "instance"} | dict.fromkeys(
    ("only_t", "unbiased", "sync_bn", "keep_last", "grad_checkpointing"), False
)
LEGACY_DEFAULTS |= {"accum_steps": 1, "lr_backbone": 1.0, "freeze": []}

METHODS: dict[str, type[Method]] = {
    "queue": Queue,
    "batch": Batch,
}


def add_method_arguments(parser: Parser, model: Group) -> None:
    """Add --contrast and the flags of all methods. model: the group of flags that describe the network."""
    loss = parser.add_argument_group("Loss")
    meanings = "\n".join(f"{name}: {method.meaning}" for name, method in METHODS.items())
    loss.add_argument(
        "--contrast",
        choices=list(METHODS),
        default="queue",
        metavar="NAME",
        help=f"Images to contrast with.\n{meanings}",
    )
    for add in dict.fromkeys(add for method in METHODS.values() for add in method.arguments):
        add(model, loss)


def ignored_flags(args) -> Cases:
    """Return the flags that are ignored because of other flags."""
    return METHODS[args.contrast].ignored_flags(args)


def unsupported_flags(args) -> Cases:
    """Return the flags of other methods that the selected method does not support."""
    own = _flags(METHODS[args.contrast])
    others = set().union(*(_flags(method) for method in METHODS.values())) - own
    return [(f"with --contrast {args.contrast}", others)]


def _flags(method: type[Method]) -> set[str]:
    scratch = Parser(add_help=False)
    for add in method.arguments:
        add(scratch, scratch)
    return {action.dest for action in scratch._actions}


def method_of(args) -> Method:
    return METHODS[args.contrast](args)


def targets_of(path: Path) -> tuple[nn.Module, Tensor]:
    """Load the projection head and the class targets of a TSC checkpoint.

    Returns:
        The head, mapping (N, d) to (N, D), and the target of each class, (C, D), both on the CPU.

    Raises:
        InputError: As `trained`, or if the checkpoint is not from the TSC phase.
    """
    method = trained(path, torch.device("cpu"))
    if (assigned := method.assigned()) is None:
        raise InputError(f"checkpoint {path}: uses no targets, expected a checkpoint from the TSC phase")
    return method.model.encoder_q.fc, assigned[0]


def trained(path: Path, device: torch.device) -> Method:
    """Load a stage-1 checkpoint of this project. Return its method, whose `model` has the weights, on the device.

    Raises:
        InputError: If the file does not exist or is not a valid stage-1 checkpoint.
    """
    state = RunState.from_dict(checkpoint.load(path, needs=("state_dict", "epoch", "args")), path)
    args = LEGACY_DEFAULTS | state.args | {"targets": None}  # the checkpoint contains its targets
    if "loss" not in args or args["contrast"] not in list(METHODS):
        found = f"--contrast {args['contrast']}" if "loss" in args else "no --loss"
        raise InputError(
            f"checkpoint {path}: {found}, expected a stage-1 checkpoint of --contrast {' or '.join(METHODS)}"
        )
    for name, (tensor, axis) in METHODS[args["contrast"]].sizes.items():  # before memory is allocated for these sizes
        held = state.weights[tensor].shape[axis : axis + 1] if tensor in state.weights else ()
        if held != (args.get(name),):
            found = f"{name} in args is {brief(args.get(name))}, but {tensor} has size {[*held]}"
            raise InputError(f"checkpoint {path}: {found}, expected a stage-1 checkpoint")
    try:
        method = METHODS[args["contrast"]](Namespace(**args))
        method.read_state(state)
        state.load_into(method.build(method.args.num_classes, state, device).to(device))
        method.restore(state)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:  # wrong types in args
        raise InputError(f"checkpoint {path}: args is not what stage 1 writes ({first_line(error)})") from None
    return method
