"""Training methods of stage 1, by --contrast name. To add one, write a module here and add a row to METHODS."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.methods.base import Method
from moco.methods.batch_method import BatchMethod
from moco.methods.bcl_method import BclMethod
from moco.methods.paco_method import PacoMethod
from moco.methods.queue_method import QueueMethod
from utils.cli.flags import Group, When, describe_arguments
from utils.cli.parser import Parser
from utils.errors import InputError, first_line, short_repr
from utils.run import checkpoint
from utils.run.state import RunState

METHODS: dict[str, type[Method]] = {
    "queue": QueueMethod,
    "batch": BatchMethod,
    "bcl": BclMethod,
    "paco": PacoMethod,
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
        help=f"What to contrast each image with.\n{descriptions}",
        legacy="queue",
    )
    for add in dict.fromkeys(add for method in METHODS.values() for add in method.argument_adders):
        first_new = len(parser._actions)
        add(model, loss)
        owners = [name for name, method in METHODS.items() if add in method.argument_adders]
        others = When("with --contrast {contrast}", lambda args, owners=owners: args.contrast not in owners)
        for flag in parser._actions[first_new:]:  # refuse them for methods that do not declare them
            parser.restrict(flag.dest, refused=(others,))


def build_method(arguments: dict[str, object]) -> Method:
    """Build the method of a run's arguments. Its settings are the arguments, with the method's own --loss-form."""
    method = METHODS[arguments["contrast"]]
    return method(Namespace(**arguments | {"loss_form": arguments["loss_form"] or method.loss_form}))


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
    sizes = METHODS[args["contrast"]].stored_sizes
    for name, (tensor, axis) in sizes.items():  # before memory is allocated for these sizes
        length = state.weights[tensor].shape[axis : axis + 1] if tensor in state.weights else ()
        if length != (args.get(name),):
            found = f"{name} in args is {short_repr(args.get(name))}, but {tensor} has size {[*length]}"
            raise InputError(f"checkpoint {path}: {found}, expected a stage-1 checkpoint")
    try:
        method = METHODS[args["contrast"]](Namespace(**args))
        method.check_extra_state(state, args["num_classes"])
        state.load_weights(method.build(args["num_classes"], state, device).to(device))
        method.load_extra_state(state)
        if state.phase:  # the KCL phase of a TSC run uses no targets yet
            method.begin_phase(state.phase, fresh=False)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:  # wrong types in args
        raise InputError(f"checkpoint {path}: args is not what stage 1 writes ({first_line(error)})") from None
    return method
