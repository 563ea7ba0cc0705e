"""Measure the features during stage 1 (--monitor-freq, --online-probe)."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils import distributed
from utils.measure.extraction import extract_features
from utils.measure.feature_file import RunFeatures, write_features
from utils.measure.features import (
    alignment,
    class_centres,
    collapse,
    knn_scores,
    neighbourhood_uniformity,
    neighbours_by_size,
    neighbours_of_a_class,
    reasonability,
    uniformity,
)
from utils.measure.metrics import ClassAccuracy
from utils.measure.online_probe import OnlineProbe
from utils.parser import Group, natural, positive_int

# Name in the log -> name on the console.
KNN = {"knn_top1": "kNN", "knn_many": "many", "knn_medium": "medium", "knn_few": "few"}
SPREAD = {"alignment": "A", "uniformity": "U", "uniformity_k": "U_k", "nc1": "NC1", "nc2": "NC2"}
MEASURES = tuple(KNN | SPREAD)
PROBE = {"probe_top1": "probe", "probe_many": "many", "probe_medium": "medium", "probe_few": "few"}
REASON = {"reasonability": "R"}  # measure of the targets; needs groups of classes that are similar in meaning
# Returns each class's target, (C, D), and the cosines of the running centroids to them, (C,); None in KCL.
Assigned = Callable[[], tuple[Tensor, Tensor] | None]


class Vote(NamedTuple):
    """The kNN vote. k: neighbours; None: `neighbours_by_size`. balanced: see `knn_scores`."""

    k: int | None = None
    balanced: bool = False


BY_SIZE = Vote()


def add_monitor_arguments(group: Group) -> None:
    group.add_argument(
        "--monitor-freq",
        type=natural,
        default=0,
        metavar="E",
        help="Measure kNN accuracy, alignment, uniformity and neural collapse every E epochs (default: never). It "
        "takes one pass over the training and validation images.",
    )
    group.add_argument(
        "--knn-k",
        type=positive_int,
        metavar="K",
        help="Number of kNN neighbours (default: √(training images), at most 200). If larger than a class, that class "
        "can be outvoted.",
    )
    group.add_argument(
        "--knn-vote",
        choices=["images", "class-balanced"],
        metavar="VOTE",
        default="images",
        help="Count votes equally (images) or weighted by 1 / class size (class-balanced). Equal votes favour frequent "
        "classes.",
    )
    group.add_argument(
        "--online-probe",
        choices=["off", "class-balanced", "adjusted"],
        metavar="KIND",
        default="off",
        help="Train a linear classifier on the detached features and report its accuracy every epoch or every "
        "--monitor-freq epochs. class-balanced: all classes count equally. adjusted: balanced softmax.",
    )


class Monitor:
    """Measures an encoder on the validation split, and writes the features of the last measured epoch (features.npz).

    Args:
        every: --monitor-freq; 0: never. class_counts: (C,) training images per class. run_dir: the run folder.
        loaders: of train and val, this rank's share in the evaluation view; empty if nothing is ever measured.
        vote: the kNN vote. groups: (C,) group of each class, by meaning, if known.
        online: the classifier of --online-probe.
    """

    def __init__(
        self,
        every: int,
        class_counts: np.ndarray,
        loaders: dict[str, Iterable],
        run_dir: Path,
        vote: Vote = BY_SIZE,
        groups: Sequence[int] | None = None,
        online: OnlineProbe | None = None,
    ):
        self.every, self.class_counts, self.loaders, self.run_dir = every, class_counts, loaders, run_dir
        self.vote, self.groups, self.online = vote, groups, online
        self.names = (MEASURES + (tuple(REASON) if groups else ()) if every else ()) + (tuple(PROBE) if online else ())
        self.kept: int | None = None  # the epoch whose features this process has written

    def step(self, labels: Tensor) -> dict[str, Tensor]:
        """Train the online probe after a training step on images with labels (N,), and return the values to log."""
        return {"probe": self.online.step(labels)} if self.online else {}

    def due(self, epochs_done: int) -> bool:
        """Whether `measure` measures after that many epochs."""
        return bool(self.names) and epochs_done % (self.every or 1) == 0

    def measure(
        self, encoder: nn.Module, epochs_done: int, between: Callable[[], None], assigned: Assigned = lambda: None
    ) -> dict[str, float | None]:
        """Return the values of `names`, all None in an epoch that is not due; without a monitor the dict is empty.

        Training continues bit for bit as without this call: it uses no random numbers of training and does not change
        batch-norm statistics. For arguments and errors see `extract_features`.
        """
        found = dict.fromkeys(self.names)
        if not self.due(epochs_done):
            return found
        if self.every:
            train, val = (
                extract_features(encoder, loader, between, f"epoch {epochs_done}, {split}")
                for split, loader in self.loaders.items()
            )
            self._keep(val, epochs_done, assigned)
            found |= measures(*val, *train, self.class_counts, self.vote)
        if self.every and self.groups:
            targets, groups = assigned(), torch.tensor(self.groups, device=val[0].device)
            found["reasonability"] = reasonability(targets[0], groups) if targets else None
        if self.online:
            where = f"epoch {epochs_done}, val"
            network = self.online.on(encoder)
            logits = extract_features(network, self.loaders["val"], between, where, finish=lambda logits: logits)
            found |= dict(zip(PROBE, top1_of(*logits, self.class_counts), strict=True))
        return found

    def finish(self, encoder: nn.Module, epochs_done: int, assigned: Assigned = lambda: None) -> None:
        """Write the features of the last epoch at the end of a run, unless this start has already written them."""
        if self.every and self.kept != epochs_done:
            val = extract_features(encoder, self.loaders["val"], where=f"epoch {epochs_done}, val")
            self._keep(val, epochs_done, assigned)

    def _keep(self, val: tuple[Tensor, Tensor], epochs_done: int, assigned: Assigned) -> None:
        self.kept = epochs_done
        if distributed.is_main():
            features, labels, *of_targets = (tensor.cpu() for tensor in (*val, *(assigned() or ())))
            counts = torch.tensor(self.class_counts)
            write_features(self.run_dir, RunFeatures(features, labels, counts, epochs_done, *of_targets))


def measures(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    class_counts: np.ndarray,
    vote: Vote = BY_SIZE,
) -> dict[str, float | None]:
    """Return the MEASURES of a split; kNN accuracies are in percent.

    Args:
        features: (n, D) unit features. labels: (n,). bank, bank_labels: (m, D) and (m,) of the training split.
        class_counts: (C,) training images per class.
    """
    num_classes = len(class_counts)
    mine = slice(distributed.rank(), None, distributed.world_size())
    k = vote.k or neighbours_by_size(len(bank))
    scores = knn_scores(features[mine], bank, bank_labels, num_classes, k, vote.balanced)
    knn = dict(zip(KNN, top1_of(scores, labels[mine], class_counts), strict=True))
    return knn | spread(features, labels, num_classes)


def top1_of(scores: Tensor, labels: Tensor, class_counts: np.ndarray) -> tuple[float | None, ...]:
    """Return the top-1 accuracies (all, many, medium, few) in percent of this rank's scores (n, C) and labels (n,)."""
    accuracy = ClassAccuracy(len(class_counts), scores.device)
    accuracy.add(scores, labels)
    found = accuracy.summary(class_counts)
    return tuple(found[name] for name in ("acc1", "many", "medium", "few"))


def spread(features: Tensor, labels: Tensor, num_classes: int) -> dict[str, float | None]:
    """Return the measures of SPREAD for unit features (n, D) with labels (n,)."""
    centres = class_centres(features, labels, num_classes)
    near = neighbourhood_uniformity(centres, neighbours_of_a_class(num_classes))
    values = alignment(features, labels), uniformity(centres), near, *collapse(features, labels, num_classes)
    return dict(zip(SPREAD, values, strict=True))


def describe_measures(values: dict[str, float | None]) -> str:
    """Format the values as a console line."""
    shown = {name: "–" if v is None else f"{v:.{2 if name in KNN | PROBE else 3}f}" for name, v in values.items()}
    return "val: " + "  ".join(
        f"{label} {shown[name]}" for name, label in (KNN | SPREAD | REASON | PROBE).items() if name in shown
    )
