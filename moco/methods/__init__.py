"""The ways to train stage 1, by the name that --contrast takes. Adding one is a file here and a row."""

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

# The methods' arguments in checkpoints that do not say them, as they were.
BEFORE = {"contrast": "queue", "kcl_epochs": None, "init_from": None, "sampling": "instance"} | dict.fromkeys(
    ("only_t", "unbiased", "sync_bn", "keep_last", "grad_checkpointing"), False
)
BEFORE |= {"accum_steps": 1, "lr_backbone": 1.0, "freeze": []}

METHODS: dict[str, type[Method]] = {
    "queue": Queue,
    "batch": Batch,
}


def add_method_arguments(parser: Parser, model: Group) -> None:
    """--contrast, and the flags of all methods; model: the group of what describes the network."""
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


def idle(args) -> Cases:
    """The flags that others leave without effect."""
    return METHODS[args.contrast].idle(args)


def foreign(args) -> Cases:
    """The flags that the method of these arguments does not have, and others do."""
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
    """Of a checkpoint of TSC, on the CPU: its projection head, (N, d) -> (N, D), and each class's target, (C, D).

    Raises:
        InputError: as `trained`; it is of no phase with targets.
    """
    method = trained(path, torch.device("cpu"))
    if (assigned := method.assigned()) is None:
        raise InputError(f"checkpoint {path}: has no targets in use, expected one of the TSC phase")
    return method.model.encoder_q.fc, assigned[0]


def trained(path: Path, device: torch.device) -> Method:
    """The method of a stage-1 checkpoint of this project, its `model` with those weights, on the device.

    Raises:
        InputError: no such file, or one that does not hold what stage 1 writes.
    """
    state = RunState.from_dict(checkpoint.load(path, needs=("state_dict", "epoch", "args")), path)
    args = BEFORE | state.args | {"targets": None}  # it has its own
    if "loss" not in args or args["contrast"] not in list(METHODS):
        found = f"--contrast {args['contrast']}" if "loss" in args else "no --loss"
        raise InputError(
            f"checkpoint {path}: {found}, expected a stage-1 checkpoint of --contrast {' or '.join(METHODS)}"
        )
    for name, (tensor, axis) in METHODS[args["contrast"]].sizes.items():  # before memory is taken for what they say
        held = state.weights[tensor].shape[axis : axis + 1] if tensor in state.weights else ()
        if held != (args.get(name),):
            found = f"its args say {name} {brief(args.get(name))}, its {tensor} is of {[*held]}"
            raise InputError(f"checkpoint {path}: {found}, expected a stage-1 checkpoint")
    try:
        method = METHODS[args["contrast"]](Namespace(**args))
        method.read_state(state)
        state.load_into(method.build(method.args.num_classes, state, device).to(device))
        method.restore(state)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:  # of arguments of another kind
        raise InputError(f"checkpoint {path}: its args are none that stage 1 writes ({first_line(error)})") from None
    return method
