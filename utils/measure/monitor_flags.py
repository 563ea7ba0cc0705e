"""Flags that decide what is measured during stage 1. Only functions import PyTorch, so that --help is fast."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.cli.flags import Group, When
from utils.cli.numbers import nonnegative_int, positive_int
from utils.configs import FromArgs
from utils.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from utils.measure.monitor import Vote
    from utils.measure.online_probe import OnlineProbe

# The probe is trained on the features of a whole step, which exist in parts only.
ACCUMULATING = When("with --accum-steps", lambda args: args.accum_steps > 1 and args.online_probe != "off")
WITHOUT_MONITOR = When("without --monitor-freq", lambda args: not args.monitor_freq)


def add_monitor_arguments(group: Group) -> None:
    group.add_argument(
        "--monitor-freq",
        type=nonnegative_int,
        default=0,
        metavar="E",
        help="Measure kNN accuracy, alignment, uniformity and neural collapse every E epochs and in the "
        "last one (default: never). It takes one pass over the training and validation images.",
        affects_result=False,
        same_everywhere=True,
    )
    group.add_argument(
        "--knn-k",
        type=positive_int,
        metavar="K",
        help="Number of kNN neighbours (default: √(training images), at most 200). A class with fewer than "
        "K images can be outvoted, even if all of them are neighbours.",
        affects_result=False,
        same_everywhere=True,
        ignored=(WITHOUT_MONITOR,),
    )
    group.add_argument(
        "--knn-vote",
        choices=["images", "class-balanced"],
        metavar="VOTE",
        default="images",
        help="Weight of a neighbour: its similarity (images), which favours frequent classes, or similarity / class "
        "size (class-balanced).",
        affects_result=False,
        same_everywhere=True,
        ignored=(WITHOUT_MONITOR,),
    )
    group.add_argument(
        "--online-probe",
        choices=["off", "class-balanced", "adjusted"],
        metavar="KIND",
        default="off",
        help="Train a linear classifier on the detached features and report its accuracy every epoch or every "
        "--monitor-freq epochs. class-balanced: all classes count equally. adjusted: balanced softmax.",
        affects_result=False,
        same_everywhere=True,
        refused=(ACCUMULATING,),
    )


@dataclass(frozen=True)
class MonitorFlags(FromArgs):
    """The flags that decide what is measured during stage 1; see --help.

    trains_classifier: whether the method trains a classifier, whose accuracy is measured too.
    """

    monitor_freq: int
    knn_k: int | None
    knn_vote: str
    online_probe: str
    trains_classifier: bool

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose features are measured."""
        needs_val = self.online_probe != "off" or self.trains_classifier
        return ("train", "val") if self.monitor_freq else ("val",) if needs_val else ()

    @property
    def files(self) -> list[str]:
        """Names of the files in the run folder."""
        from utils.measure import feature_file

        return [feature_file.NAME] if self.monitor_freq else []

    @property
    def vote(self) -> "Vote":
        from utils.measure.monitor import Vote

        return Vote(self.knn_k, self.knn_vote == "class-balanced")

    def check(self, images: int, processes: int) -> None:
        """Raise InputError if some process would have no validation image. images: number of validation images."""
        if images < processes:
            raise InputError(
                f"--monitor-freq: {images} validation images for {processes} processes, expected at least one per "
                "process; start fewer processes, or omit --monitor-freq, --online-probe, --joint, bcl and paco"
            )

    def build_probe(self, encoder: "nn.Module", counts: np.ndarray, balanced: bool, state) -> "OnlineProbe | None":
        """Build the classifier of --online-probe on the encoder's device, and restore it from the run's state.

        Args:
            counts: (C,) training images per class. balanced: whether the batches are class-balanced.
        """
        if self.online_probe == "off":
            return None
        import torch

        from utils.measure.online_probe import OnlineProbe

        # The probe adjusts for the class balance of its batches, so balanced batches need uniform counts.
        batch_counts = torch.ones(len(counts)) if balanced else torch.from_numpy(counts)
        probe = OnlineProbe(encoder, batch_counts, self.online_probe == "adjusted")
        probe.to(next(encoder.parameters()).device).restore(state.extra.get("online_probe"), state.source)
        return probe
