"""The running centroids of the classes, and how near they are to their targets."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

CENTROID_MOMENTUM = 0.9


def update_centroids(centroids: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Move the centroids of the classes in this batch towards the batch's means.

    ``c_y <- normalise(0.9 c_y + 0.1 normalise(mean of q with label y))``; classes
    that are not in the batch keep theirs, bit for bit.

    Args:
        centroids: (C, D) unit vectors. q: (B, D) queries of the global batch.
        labels: (B,) int64 in [0, C).

    Returns:
        (C, D) the new centroids.
    """
    # A product with the one-hot labels, not index_add_, whose order of summation on a GPU is left to chance; in
    # float64 there, which --tf32 does not round.
    member = torch.arange(len(centroids), device=labels.device)[:, None] == labels  # (C, B)
    wide = torch.float64 if q.is_cuda else centroids.dtype
    total = member.to(wide) @ q.to(wide)  # (C, D)
    mean = normalize(total, dim=1).to(centroids.dtype)  # normalising the sum is normalising the mean
    moved = normalize(CENTROID_MOMENTUM * centroids + (1 - CENTROID_MOMENTUM) * mean, dim=1)
    return torch.where(member.any(dim=1, keepdim=True), moved, centroids)


def queue_centroids(centroids: Tensor, queue: Tensor, queue_labels: Tensor) -> Tensor:
    """The normalised mean of each class's keys in the queue; a class without any keeps its centroid.

    Args:
        centroids: (C, D). queue: (D, Q) keys. queue_labels: (Q,) int64, -1 where empty.

    Returns:
        (C, D) unit vectors: centroids that know the classes before TSC's first assignment.
    """
    keys, labels = queue.T.cpu().double(), queue_labels.cpu()  # once a run, and the CPU adds in a fixed order
    full = labels >= 0
    total = torch.zeros(centroids.shape, dtype=keys.dtype).index_add_(0, labels[full], keys[full])  # (C, D)
    present = torch.bincount(labels[full], minlength=len(centroids)) > 0  # (C,)
    means = normalize(total, dim=1).to(centroids)
    return torch.where(present.to(centroids.device)[:, None], means, centroids)


def target_facts(
    centroids: Tensor, targets: Tensor | None, now: list[int] | None, before: list[int] | None
) -> dict[str, float | None]:
    """How the classes meet their targets; nothing of a model without targets, None where it is not defined.

    target_cosine: mean cosine of a class centroid to its target; target_changed: percent of the classes whose
    target is another one than before.

    Args:
        centroids, targets: (C, D). now, before: row of each class's target, now and an epoch ago; None: had none yet.
    """
    if targets is None:
        return {}
    if now is None:
        return {"target_cosine": None, "target_changed": None}
    cosine = float(target_cosines(centroids, targets, now).mean())
    changed = None if before is None else 100 * float(np.mean(np.array(now) != np.array(before)))
    return {"target_cosine": cosine, "target_changed": changed}


def target_cosines(centroids: Tensor, targets: Tensor, assignment: list[int]) -> Tensor:
    """(C,) cosine of each class's centroid (C, D) to its target, of targets (C, D)."""
    return (normalize(centroids, dim=1) * targets[assignment]).sum(dim=1)


def describe_facts(facts: dict[str, float | None]) -> str:
    """`target_facts` for the console, empty while there are none."""
    cosine, changed = facts.get("target_cosine"), facts.get("target_changed")
    shown = "" if cosine is None else f"  cos(centroid, target) {cosine:.3f}"
    return shown if changed is None else f"{shown}  targets changed {changed:.0f} %"
