"""The ways to train stage 1, by the name that --loss takes. Adding one is a file here and a row."""

from argparse import Namespace
from pathlib import Path

import torch

from moco.methods.base import Method
from moco.methods.queue import MomentumContrast, SupervisedContrast
from utils.errors import InputError
from utils.parser import Group, Parser
from utils.run import checkpoint
from utils.run.state import RunState

METHODS: dict[str, type[Method]] = {
    "SupCon": SupervisedContrast,
    "MoCo": MomentumContrast,
}


def add_method_arguments(parser: Parser, model: Group) -> None:
    """--loss, and the flags of all methods; model: the group of what describes the network."""
    loss = parser.add_argument_group("Loss")
    meanings = "; ".join(f"{name}: {method.meaning}" for name, method in METHODS.items())
    loss.add_argument("--loss", choices=list(METHODS), default="SupCon", help=meanings)
    for add in dict.fromkeys(method.add_arguments for method in METHODS.values()):  # once, where methods share theirs
        add(model, loss)


def trained(path: Path, device: torch.device) -> Method:
    """The method of a stage-1 checkpoint of this project, its `model` with those weights, on the device.

    Raises:
        InputError: no such file, or one that does not hold what stage 1 writes.
    """
    state = RunState.from_dict(checkpoint.load(path, needs=("state_dict", "epoch", "args")), path)
    if state.args.get("loss") not in METHODS:
        raise InputError(
            f"checkpoint {path}: --loss {state.args.get('loss')}, expected a stage-1 checkpoint of one of "
            f"{', '.join(METHODS)}"
        )
    method = METHODS[state.args["loss"]](Namespace(**state.args | {"targets": None}))  # it has its own
    method.read_state(state)
    state.load_into(method.build(method.args.num_classes, state, device).to(device))
    method.restore(state)
    return method
