"""Training methods of stage 1, by --contrast name. To add one, write a module here and add a row to METHODS.

This file and the two files of flags do not import PyTorch, which takes seconds, because --help lists the methods.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from moco.methods import method_flags, other_flags
from utils.cli.flags import Group, When
from utils.cli.parser import Parser

if TYPE_CHECKING:
    from moco.methods.base import Method


class MethodRow(NamedTuple):
    """A row of METHODS.

    Attributes:
        help: text for --help.
        load: imports the class of the method, and returns it.
        argument_adders: functions that add the flags of the method, add(model, loss); `model` is the group of flags
            that describe the network. Flags of other methods are rejected.
    """

    help: str
    load: Callable[[], "type[Method]"]
    argument_adders: tuple[Callable[[Group, Group], None], ...]


def _load_queue() -> "type[Method]":
    from moco.methods.queue_method import QueueMethod

    return QueueMethod


def _load_batch() -> "type[Method]":
    from moco.methods.batch_method import BatchMethod

    return BatchMethod


def _load_bcl() -> "type[Method]":
    from moco.methods.bcl_method import BclMethod

    return BclMethod


def _load_paco() -> "type[Method]":
    from moco.methods.paco_method import PacoMethod

    return PacoMethod


ENCODER = (method_flags.add_encoder_arguments,)
PROJECTED = (*ENCODER, method_flags.add_mlp_argument)
CONTRAST = (*PROJECTED, method_flags.add_contrast_arguments, other_flags.add_joint_arguments)
METHODS = {
    "queue": MethodRow(
        "keys of past steps (the paper on ImageNet-LT)",
        _load_queue,
        (
            *CONTRAST,
            method_flags.add_queue_arguments,
            method_flags.add_queue_target_arguments,
            other_flags.add_authors_kcl_arguments,
        ),
    ),
    "batch": MethodRow(
        "other images of the batch (the paper on CIFAR)", _load_batch, (*CONTRAST, method_flags.add_batch_arguments)
    ),
    "bcl": MethodRow(
        "the batch and class prototypes; also trains a classifier (BCL, one stage)",
        _load_bcl,
        (*ENCODER, other_flags.add_classifier_view_argument, other_flags.add_bcl_arguments),
    ),
    "paco": MethodRow(
        "keys of past steps and class logits (PaCo, one stage)",
        _load_paco,
        (
            *PROJECTED,
            method_flags.add_queue_arguments,
            other_flags.add_classifier_view_argument,
            other_flags.add_paco_arguments,
        ),
    ),
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


def build_method(arguments: dict[str, object]) -> "Method":
    """Build the method of a run's arguments. Its settings are the arguments, with the method's own --loss-form."""
    method = METHODS[arguments["contrast"]].load()
    return method(Namespace(**arguments | {"loss_form": arguments["loss_form"] or method.loss_form}))
