"""What the features are like while stage 1 trains (--monitor-freq), and how the targets are met (TSC)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from imagenet_inat.loaders import DeviceBatches, eval_loader
from moco.builder import KCL, unit
from moco.loader import eval_transform
from utils import distributed, resolve
from utils.errors import InputError
from utils.feature_measures import (
    alignment,
    class_centres,
    knn_scores,
    neighbourhood_uniformity,
    neighbours_of_a_class,
    uniformity,
)
from utils.metrics import ClassAccuracy

KNN = ("knn_top1", "knn_many", "knn_medium", "knn_few")
SPREAD = ("alignment", "uniformity", "uniformity_k")
MEASURES = KNN + SPREAD


class Monitor:
    """Measures of the query encoder on the validation split, every --monitor-freq epochs.

    Args:
        args: the resolved arguments. class_counts: (C,) training images a class.
    """

    def __init__(self, args, class_counts: np.ndarray):
        self.every, self.class_counts = args.monitor_freq, class_counts
        self.loaders = open_loaders(args, ("train", "val")) if self.every else {}

    def measure(self, model: KCL, epochs_done: int, between: Callable[[], None]) -> dict[str, float | None]:
        """The MEASURES by name, None each in an epoch that is not due; without a monitor nothing at all.

        Training goes on to the bit as if this had not been: nothing random is drawn that training
        uses, and the batch-norm statistics do not move.

        Args:
            between: called after each batch that every rank has.

        Raises:
            InputError: a feature is not finite; the last checkpoint stays as it was.
        """
        if not self.every:
            return {}
        if epochs_done % self.every:
            return dict.fromkeys(MEASURES)
        train, val = (
            extract_features(model.encoder_q, loader, between, f"epoch {epochs_done}, {split}")
            for split, loader in self.loaders.items()
        )
        return measures(*val, *train, self.class_counts)


def open_loaders(args, splits: tuple[str, ...]) -> dict[str, DeviceBatches]:
    """This rank's share of the splits in their evaluation view."""
    spec = resolve.spec_of(args)
    view = eval_transform(spec, args.image_size)
    share = max(1, args.batch_size // distributed.world_size())
    data = {split: resolve.open_split(args, split, view) for split in splits}
    return {split: eval_loader(data[split], share, args.workers, spec, args.device) for split in splits}


@torch.no_grad()
def extract_features(
    encoder: nn.Module, loader: DeviceBatches, between: Callable[[], None] = lambda: None, where: str = "this split"
) -> tuple[Tensor, Tensor]:
    """Unit features of a split in its order, (n, D) float32, and labels (n,), the same on every rank.

    The encoder's whole output, after the projection head, as in the paper's measures. It is in
    eval mode here with rank 0's batch-norm statistics, which are those that checkpoints hold, and
    afterwards in the mode it was in. where: what the split is called in messages.

    Raises:
        InputError: on all ranks, if a feature is not finite.
    """
    was_training = encoder.training
    distributed.broadcast_buffers(encoder)
    encoder.eval()
    features, labels = [], []
    for number, (images, its_labels) in enumerate(loader):
        features.append(unit(encoder(images)))
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
    """The MEASURES of a split, kNN against the training split; accuracies in percent.

    Args:
        features: (n, D) unit, labels: (n,) of the split. bank: (m, D), bank_labels: (m,) of the
            training split. class_counts: (C,), which make the shots.
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
    """The console line: kNN top-1 with its shots, A, U and U_k."""
    shown = {name: "–" if v is None else f"{v:.2f}" if "knn" in name else f"{v:.3f}" for name, v in values.items()}
    shots = "  ".join(f"{shot} {shown[f'knn_{shot}']}" for shot in ("many", "medium", "few"))
    return (
        f"val: kNN {shown['knn_top1']}  {shots}  "
        f"A {shown['alignment']}  U {shown['uniformity']}  U_k {shown['uniformity_k']}"
    )


def assignment_of(model: KCL) -> list[int] | None:
    """Row of each class's target since the last step, None before the first step of TSC."""
    return None if model.assignment is None else model.assignment.tolist()


def target_facts(model: KCL, before: list[int] | None) -> dict[str, float | None]:
    """How the classes meet their targets; nothing of a model without targets.

    Args:
        before: `assignment_of` the model an epoch ago, None if it had none.

    Returns:
        target_cosine: mean cosine of a class centroid to its target; target_changed: percent of
        the classes whose target is another one than before. None where it is not defined.
    """
    if model.optimal_target is None:
        return {}
    now = assignment_of(model)
    if now is None:
        return {"target_cosine": None, "target_changed": None}
    cosine = float(target_cosines(model.class_centroid, model.optimal_target[:: model.tr], now).mean())
    changed = None if before is None else 100 * float(np.mean(np.array(now) != np.array(before)))
    return {"target_cosine": cosine, "target_changed": changed}


def target_cosines(centroids: Tensor, targets: Tensor, assignment: list[int]) -> Tensor:
    """(C,) cosine of each class's centroid (C, D) to its target, of targets (C, D)."""
    return (normalize(centroids, dim=1) * targets[assignment]).sum(dim=1)


def describe_facts(facts: dict[str, float | None]) -> str:
    """`target_facts` for the console, empty while there are none."""
    if facts.get("target_cosine") is None:
        return ""
    changed = facts["target_changed"]
    return f"  cos(centroid, target) {facts['target_cosine']:.3f}" + (
        "" if changed is None else f"  targets changed {changed:.0f} %"
    )
