"""Flags of the scripts that train a classifier: how often and how it is evaluated."""

from utils.cli.flags import Group
from utils.cli.numbers import positive_int


def add_evaluation_arguments(group: Group) -> None:
    group.add_argument(
        "--eval-freq",
        type=positive_int,
        default=1,
        metavar="E",
        help="Validate and test every E epochs and after the last one; the best epoch is selected among these. "
        "Increase it if evaluation takes as long as training.",
        trains=True,
    )
    group.add_argument(
        "--eval-batch-size",
        type=positive_int,
        metavar="N",
        help="Evaluation batch size per process; results do not depend on it (default: 256, or the process's share of "
        "--batch-size if larger).",
        affects_result=False,
        same_everywhere=True,
    )
