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
from utils.measure.feature_measures import (
    alignment,
    class_centres,
    default_knn_k,
    default_uniformity_k,
    knn_scores,
    neighbourhood_uniformity,
    neural_collapse,
    reasonability,
    uniformity,
)
from utils.measure.metrics import ClassAccuracy
from utils.measure.online_probe import ClassifierNetwork, OnlineProbe

# Name in the log -> name on the console.
KNN_MEASURES = {"knn_top1": "kNN", "knn_many": "many", "knn_medium": "medium", "knn_few": "few"}
GEOMETRY_MEASURES = {"alignment": "A", "uniformity": "U", "uniformity_k": "U_k", "nc1": "NC1", "nc2": "NC2"}
FEATURE_MEASURES = tuple(KNN_MEASURES | GEOMETRY_MEASURES)
PROBE_MEASURES = {"probe_top1": "probe", "probe_many": "many", "probe_medium": "medium", "probe_few": "few"}
CLASSIFIER_MEASURES = {
    f"classifier_{name}": text
    for name, text in (("top1", "classifier"), ("many", "many"), ("medium", "medium"), ("few", "few"))
}
TARGET_MEASURES = {"reasonability": "R"}  # needs superclasses, that is, groups of classes that are similar in meaning
# Returns each class's target, (C, D), and the cosines of the running centroids to them, (C,); None in KCL.
ClassTargets = Callable[[], tuple[Tensor, Tensor] | None]


class Vote(NamedTuple):
    """The kNN vote. k: neighbours; None: `default_knn_k`. balanced: see `knn_scores`."""

    k: int | None = None
    balanced: bool = False


BY_SIZE = Vote()


class Monitor:
    """Measures an encoder on the validation split, and writes the features of the last measured epoch (features.npz).

    Args:
        freq: --monitor-freq, epochs between measurements; the last epoch is also measured. 0: measure no features.
        epochs: epochs of the run.
        class_counts: (C,) training images per class.
        loaders: evaluation loaders of train and val with this rank's images; empty if nothing is ever measured.
        run_dir: the run folder.
        vote: the kNN vote.
        superclasses: (C,) superclass of each class, or None.
        online_probe: the classifier of --online-probe, which `train_online_probe` trains.
        classifier: the classifier that the method trains together with the encoder, see `ClassifierNetwork`.
    """

    def __init__(
        self,
        freq: int,
        epochs: int,
        class_counts: np.ndarray,
        loaders: dict[str, Iterable],
        run_dir: Path,
        vote: Vote = BY_SIZE,
        superclasses: Sequence[int] | None = None,
        online_probe: OnlineProbe | None = None,
        classifier: nn.Module | None = None,
    ):
        self.freq, self.epochs, self.class_counts = freq, epochs, class_counts
        self.loaders, self.run_dir = loaders, run_dir
        self.vote, self.superclasses, self.online_probe = vote, superclasses, online_probe
        self.names = (*FEATURE_MEASURES, *(TARGET_MEASURES if superclasses else ())) if freq else ()
        probes = (online_probe, PROBE_MEASURES), (classifier, CLASSIFIER_MEASURES)
        self.classifiers = [(module, names) for module, names in probes if module]
        self.names += tuple(name for _, names in self.classifiers for name in names)
        self.written_epoch: int | None = None  # the epoch whose features this process has written

    def train_online_probe(self, labels: Tensor) -> dict[str, Tensor]:
        """Train the online probe after a training step on images with labels (N,), and return the values to log."""
        return {"probe": self.online_probe.step(labels)} if self.online_probe else {}

    def due(self, epochs_done: int) -> bool:
        """Whether `measure` measures after that many epochs."""
        return bool(self.names) and (epochs_done % (self.freq or 1) == 0 or epochs_done == self.epochs)

    def measure(
        self,
        encoder: nn.Module,
        epochs_done: int,
        after_batch: Callable[[], None],
        class_targets: ClassTargets = lambda: None,
    ) -> dict[str, float | None]:
        """Return the values of `names`, all None in an epoch that is not due; without a monitor the dict is empty.

        Training continues bit for bit as without this call: it uses no random numbers of training and does not change
        batch-norm statistics. For arguments and errors see `extract_features`.
        """
        values: dict[str, float | None] = dict.fromkeys(self.names)
        if not self.due(epochs_done):
            return values
        if self.freq:
            train, val = (
                extract_features(encoder, loader, after_batch, f"epoch {epochs_done}, {split}")
                for split, loader in self.loaders.items()
            )
            self._write(val, epochs_done, class_targets)
            values |= measure_features(*val, *train, self.class_counts, self.vote)
        if self.freq and self.superclasses:
            targets, superclasses = class_targets(), torch.tensor(self.superclasses, device=val[0].device)
            values["reasonability"] = reasonability(targets[0], superclasses) if targets else None
        for classifier, names in self.classifiers:
            if not classifier.is_ready:
                continue
            where = f"epoch {epochs_done}, val"
            network = ClassifierNetwork(encoder, classifier)
            logits = extract_features(
                network, self.loaders["val"], after_batch, where, postprocess=lambda logits: logits
            )
            values |= dict(zip(names, top1_accuracies(*logits, self.class_counts), strict=True))
        return values

    def finish(self, encoder: nn.Module, epochs_done: int, class_targets: ClassTargets = lambda: None) -> None:
        """Write the features of the last epoch at the end of a run, unless `measure` has already written them."""
        if self.freq and self.written_epoch != epochs_done:
            val = extract_features(encoder, self.loaders["val"], where=f"epoch {epochs_done}, val")
            self._write(val, epochs_done, class_targets)

    def _write(self, val: tuple[Tensor, Tensor], epochs_done: int, class_targets: ClassTargets) -> None:
        self.written_epoch = epochs_done
        if distributed.is_main():
            features, labels, *target_entries = (tensor.cpu() for tensor in (*val, *(class_targets() or ())))
            counts = torch.tensor(self.class_counts)
            write_features(self.run_dir, RunFeatures(features, labels, counts, epochs_done, *target_entries))


def measure_features(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    class_counts: np.ndarray,
    vote: Vote = BY_SIZE,
) -> dict[str, float | None]:
    """Return the FEATURE_MEASURES of a split; kNN accuracies are in percent.

    Args:
        features, labels: (n, D) unit features and (n,) labels of the split.
        bank, bank_labels: (m, D) unit features and (m,) labels of the training split.
        class_counts: (C,) training images per class.
    """
    num_classes = len(class_counts)
    own_rows = slice(distributed.rank(), None, distributed.world_size())
    k = vote.k or default_knn_k(len(bank))
    scores = knn_scores(features[own_rows], bank, bank_labels, num_classes, k, vote.balanced)
    knn = dict(zip(KNN_MEASURES, top1_accuracies(scores, labels[own_rows], class_counts), strict=True))
    return knn | measure_geometry(features, labels, num_classes)


def top1_accuracies(scores: Tensor, labels: Tensor, class_counts: np.ndarray) -> tuple[float | None, ...]:
    """Return the top-1 accuracies (all, many, medium, few) in percent of this rank's scores (n, C) and labels (n,)."""
    accuracy = ClassAccuracy(len(class_counts), scores.device)
    accuracy.add(scores, labels)
    summary = accuracy.summary(class_counts)
    return tuple(summary[name] for name in ("acc1", "many", "medium", "few"))


def measure_geometry(features: Tensor, labels: Tensor, num_classes: int) -> dict[str, float | None]:
    """Return the GEOMETRY_MEASURES of unit features (n, D) with labels (n,)."""
    centres = class_centres(features, labels, num_classes)
    uniformity_k = neighbourhood_uniformity(centres, default_uniformity_k(num_classes))
    nc1, nc2 = neural_collapse(features, labels, num_classes)
    values = alignment(features, labels), uniformity(centres), uniformity_k, nc1, nc2
    return dict(zip(GEOMETRY_MEASURES, values, strict=True))


def format_measures(values: dict[str, float | None]) -> str:
    """Format the values as a console line."""
    digits = {name: 2 if name in KNN_MEASURES | PROBE_MEASURES | CLASSIFIER_MEASURES else 3 for name in values}
    texts = {name: "–" if value is None else f"{value:.{digits[name]}f}" for name, value in values.items()}
    labels = KNN_MEASURES | GEOMETRY_MEASURES | TARGET_MEASURES | PROBE_MEASURES | CLASSIFIER_MEASURES
    return "val: " + "  ".join(f"{label} {texts[name]}" for name, label in labels.items() if name in texts)
