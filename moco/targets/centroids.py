"""Running class centroids, and their distance to the class targets."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

CENTROID_MOMENTUM = 0.9


def update_centroids(centroids: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Move the centroids of the classes in this batch towards the class means of the batch.

    ``c_y <- normalise(0.9 c_y + 0.1 normalise(mean of q with label y))``. Centroids of
    classes that are not in the batch stay bit-identical. So do centroids that would not be
    finite, so that one diverged batch does not make them NaN for good.

    Args:
        centroids: (C, D) unit vectors. q: (B, D) queries of the global batch.
        labels: (B,) int64 in [0, C).

    Returns:
        The new centroids, (C, D).
    """
    # A product with one-hot labels, because index_add_ sums in an undefined order on a GPU. float64 on a GPU, because
    # --tf32 does not affect it.
    member = torch.arange(len(centroids), device=labels.device)[:, None] == labels  # (C, B)
    wide = torch.float64 if q.is_cuda else centroids.dtype
    total = member.to(wide) @ q.to(wide)  # (C, D)
    mean = normalize(total, dim=1).to(centroids.dtype)  # the normalised sum equals the normalised mean
    moved = normalize(CENTROID_MOMENTUM * centroids + (1 - CENTROID_MOMENTUM) * mean, dim=1)
    present = member.any(dim=1) & moved.isfinite().all(dim=1)  # (C,)
    return torch.where(present[:, None], moved, centroids)


def queue_centroids(centroids: Tensor, queue: Tensor, queue_labels: Tensor) -> Tensor:
    """Return the normalised mean of each class's keys in the queue. A class without keys keeps its centroid.

    Args:
        centroids: (C, D). queue: (D, Q) keys. queue_labels: (Q,) int64, -1 for empty columns.

    Returns:
        (C, D) unit vectors, the initial centroids for the first assignment of TSC.
    """
    keys, labels = queue.T.cpu().double(), queue_labels.cpu()  # once per run; the CPU sums in a fixed order
    full = labels >= 0
    total = torch.zeros(centroids.shape, dtype=keys.dtype).index_add_(0, labels[full], keys[full])  # (C, D)
    present = torch.bincount(labels[full], minlength=len(centroids)) > 0  # (C,)
    means = normalize(total, dim=1).to(centroids)
    return torch.where(present.to(centroids.device)[:, None], means, centroids)


def target_metrics(
    centroids: Tensor, targets: Tensor | None, assignment: list[int] | None, previous_assignment: list[int] | None
) -> dict[str, float | None]:
    """Return how well the class centroids match their targets.

    Args:
        centroids, targets: (C, D). assignment, previous_assignment: row of each class's target now and one epoch ago;
            None before the first assignment.

    Returns:
        target_cosine, the mean cosine between the centroid and the target of a class, and target_changed, the
        percentage of classes whose target has changed; None where undefined. Empty if there are no targets.
    """
    if targets is None:
        return {}
    if assignment is None:
        return {"target_cosine": None, "target_changed": None}
    cosine = float(target_cosines(centroids, targets, assignment).mean())
    changed = None
    if previous_assignment is not None:
        changed = 100 * float(np.mean(np.array(assignment) != np.array(previous_assignment)))
    return {"target_cosine": cosine, "target_changed": changed}


def target_cosines(centroids: Tensor, targets: Tensor, assignment: list[int]) -> Tensor:
    """Return the cosine between each class's centroid and its target, (C,). centroids, targets: (C, D)."""
    return (normalize(centroids, dim=1) * targets[assignment]).sum(dim=1)


def format_target_metrics(metrics: dict[str, float | None]) -> str:
    """Format `target_metrics` for the console; empty before the first assignment."""
    cosine, changed = metrics.get("target_cosine"), metrics.get("target_changed")
    text = "" if cosine is None else f"  cos(centroid, target) {cosine:.3f}"
    return text if changed is None else f"{text}  targets changed {changed:.0f} %"
