"""What the features are like while stage 1 trains (--monitor-freq)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from utils import distributed
from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, write_features
from utils.measure.features import (
    alignment,
    class_centres,
    knn_scores,
    neighbourhood_uniformity,
    neighbours_of_a_class,
    uniformity,
)
from utils.measure.metrics import ClassAccuracy

# Name in the log -> name on the console.
KNN = {"knn_top1": "kNN", "knn_many": "many", "knn_medium": "medium", "knn_few": "few"}
SPREAD = {"alignment": "A", "uniformity": "U", "uniformity_k": "U_k"}
MEASURES = tuple(KNN | SPREAD)
# (C, D) each class's target, (C,) cosines of the running centroids to them; None in KCL.
Assigned = Callable[[], tuple[Tensor, Tensor] | None]


class Monitor:
    """Measures of an encoder on the validation split, and the features of the last epoch measured in features.npz.

    Args:
        every: --monitor-freq; 0: never. class_counts: (C,) training images a class. run_dir: the run folder.
        loaders: of train and val, this rank's share in the evaluation view; empty where it never measures.
    """

    def __init__(self, every: int, class_counts: np.ndarray, loaders: dict[str, Iterable], run_dir: Path):
        self.every, self.class_counts, self.loaders, self.run_dir = every, class_counts, loaders, run_dir
        self.kept: int | None = None  # the epoch whose features this process has written

    def measure(
        self, encoder: nn.Module, epochs_done: int, between: Callable[[], None], assigned: Assigned = lambda: None
    ) -> dict[str, float | None]:
        """The MEASURES by name, None each in an epoch that is not due; without a monitor nothing at all.

        Training goes on to the bit as if this had not been: nothing random is drawn that training
        uses, and the batch-norm statistics do not move. Arguments and errors: see `extract_features`.
        """
        if not self.every:
            return {}
        if epochs_done % self.every:
            return dict.fromkeys(MEASURES)
        train, val = (
            extract_features(encoder, loader, between, f"epoch {epochs_done}, {split}")
            for split, loader in self.loaders.items()
        )
        self._keep(val, epochs_done, assigned)
        return measures(*val, *train, self.class_counts)

    def finish(self, encoder: nn.Module, epochs_done: int, assigned: Assigned = lambda: None) -> None:
        """At the end of a run: the features of its last epoch, if that was not due, or done before this start."""
        if self.every and self.kept != epochs_done:
            val = extract_features(encoder, self.loaders["val"], where=f"epoch {epochs_done}, val")
            self._keep(val, epochs_done, assigned)

    def _keep(self, val: tuple[Tensor, Tensor], epochs_done: int, assigned: Assigned) -> None:
        self.kept = epochs_done
        if distributed.is_main():
            features, labels, *of_targets = (tensor.cpu() for tensor in (*val, *(assigned() or ())))
            counts = torch.tensor(self.class_counts)
            write_features(self.run_dir, RunFeatures(features, labels, counts, epochs_done, *of_targets))


@torch.no_grad()
def extract_features(
    encoder: nn.Module, loader: Iterable, between: Callable[[], None] = lambda: None, where: str = "this split"
) -> tuple[Tensor, Tensor]:
    """Unit features of a split in its order, (n, D) float32, and labels (n,), the same on every rank.

    The encoder's whole output, after the projection head, as in the paper's measures; in eval mode meanwhile, with
    rank 0's batch-norm statistics, which are those that checkpoints hold. between: called after each batch that every
    rank has. where: what the split is called in messages. Raises InputError: on all ranks, if a feature is not finite.
    """
    was_training = encoder.training
    distributed.broadcast_buffers(encoder)
    encoder.eval()
    features, labels = [], []
    for number, (images, its_labels) in enumerate(loader):
        features.append(normalize(encoder(images), dim=1))
        labels.append(its_labels)
        if number < loader.on_every_rank:
            between()
    encoder.train(was_training)
    total = len(loader.dataset)
    whole = _whole_split(torch.cat(features), total)
    if bad := int((~whole.isfinite().all(dim=1)).sum()):
        raise InputError(
            f"{where}: {bad} of {total} images have features that are not finite; the network has diverged: take an "
            "earlier checkpoint, or train with a smaller --lr"
        )
    return whole, _whole_split(torch.cat(labels), total)


def _whole_split(share: Tensor, total: int) -> Tensor:
    """The split's rows from the ranks' shares: rank r has every world-th row, from row r on."""
    longest = -(-total // distributed.world_size())
    padded = torch.cat([share, share.new_zeros(longest - len(share), *share.shape[1:])])
    ranks = distributed.gather(padded).view(distributed.world_size(), longest, *share.shape[1:])
    return ranks.transpose(0, 1).flatten(0, 1)[:total]


def measures(
    features: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, class_counts: np.ndarray
) -> dict[str, float | None]:
    """The MEASURES of a split, kNN in percent.

    features: (n, D) unit, labels: (n,). bank: (m, D), bank_labels: (m,) of the training split. class_counts: (C,).
    """
    num_classes = len(class_counts)
    accuracy = ClassAccuracy(num_classes, features.device)
    mine = slice(distributed.rank(), None, distributed.world_size())
    accuracy.add(knn_scores(features[mine], bank, bank_labels, num_classes), labels[mine])
    top1 = accuracy.summary(class_counts)
    knn = dict(zip(KNN, (top1[name] for name in ("acc1", "many", "medium", "few")), strict=True))
    return knn | spread(features, labels, num_classes)


def spread(features: Tensor, labels: Tensor, num_classes: int) -> dict[str, float | None]:
    """The SPREAD of (n, D) unit features with labels (n,)."""
    centres = class_centres(features, labels, num_classes)
    near = neighbourhood_uniformity(centres, neighbours_of_a_class(num_classes))
    return dict(zip(SPREAD, (alignment(features, labels), uniformity(centres), near), strict=True))


def describe_measures(values: dict[str, float | None]) -> str:
    """The console line."""
    shown = {name: "–" if v is None else f"{v:.{2 if name in KNN else 3}f}" for name, v in values.items()}
    return "val: " + "  ".join(f"{label} {shown[name]}" for name, label in (KNN | SPREAD).items())
