"""Measures of a feature space, pure functions: class centres, alignment, uniformity, neural collapse, kNN."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

MOST_NEIGHBOURS, KNN_TEMPERATURE = 200, 0.07  # as in instance discrimination, MoCo and DINO
BLOCK = 64  # queries compared with the whole bank at a time
ROUNDING = 8  # in units of a float's resolution: cosines this near are equal, for a product rounds


def class_centres(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C, D) normalised class means of (n, D) unit features; nan for a class without an image."""
    total = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    empty = torch.bincount(labels, minlength=num_classes) == 0
    return normalize(total, dim=1).masked_fill(empty[:, None], float("nan"))


def alignment(features: Tensor, labels: Tensor) -> float:
    """A = mean over the classes of (n, D) unit features of the mean distance of two images; lower is tighter.

    All |F_y|² ordered pairs count, an image with itself among them, as in the paper's equation; classes without an
    image do not. labels: (n,) int64.
    """
    means = [_distances(features[labels == label]).mean() for label in labels.unique()]
    return float(torch.stack(means).mean())


def uniformity(centres: Tensor) -> float | None:
    """U = mean distance of two different class centres: U_k with k = all others."""
    return neighbourhood_uniformity(centres, len(centres))


def neighbours_of_a_class(num_classes: int) -> int:
    """k of U_k: 10, and of fewer than 31 classes a third of the others; with all of them it would be U again."""
    return max(1, min(10, (num_classes - 1) // 3))


def neighbourhood_uniformity(centres: Tensor, k: int) -> float | None:
    """U_k = mean distance of a class centre to its k nearest (all others if there are fewer); higher is more even.

    centres: (C, D) unit; rows of nan are left out, and None is of fewer than two.
    """
    centres = centres[centres.isfinite().all(dim=1)]
    others = len(centres) - 1
    if others < 1:
        return None
    distances = _distances(centres).fill_diagonal_(float("inf"))
    return float(distances.topk(min(k, others), largest=False).values.mean())


def _distances(points: Tensor) -> Tensor:
    # Not through their products, which is quicker and loses the distance of near neighbours.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def collapse(features: Tensor, labels: Tensor, num_classes: int) -> tuple[float | None, float | None]:
    """NC1 and NC2 of neural collapse (Papyan, Han and Donoho 2020), of (n, D) features with labels (n,); 0 is full.

    NC1 = tr(Σ_W Σ_B⁺) / C: how wide the classes are beside the distances of their means. NC2 = mean over the pairs of
    |cos(μ_c − μ, μ_c' − μ) + 1/(C − 1)|: how far the means are from a simplex; more than D + 1 classes cannot form one.
    C: classes that have an image, μ: the mean of their means. None of fewer than two classes, or of one point.
    """
    present = torch.bincount(labels, minlength=num_classes) > 0
    classes = int(present.sum())
    features = features.double()
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    means = sums / torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]
    within = features - means[labels]
    between = means[present] - means[present].mean(0)
    if classes < 2 or float(between.abs().max()) < 1e-7:  # of unit features in float32: rounding
        return None, None
    of_classes = torch.linalg.pinv(between.T @ between / classes, hermitian=True)
    directions = normalize(between, dim=1)
    pairs = ~torch.eye(classes, dtype=torch.bool, device=features.device)
    angles = ((directions @ directions.T)[pairs] + 1 / (classes - 1)).abs().mean()
    return float(((within @ of_classes) * within).sum() / len(features) / classes), float(angles)


def reasonability(targets: Tensor, groups: Tensor) -> float:
    """R = mean over the classes of the distance of a class's target to those of the other classes of its group.

    The paper's supplement: lower where classes that are near in meaning have targets that are near. targets: (C, D),
    row y of class y. groups: (C,) int64, as CIFAR-100's superclasses; a class alone in its group is left out.
    """
    others = (groups[:, None] == groups).fill_diagonal_(False)  # (C, C)
    near = (_distances(targets) * others).sum(1)
    alone = others.sum(1) == 0
    return float((near / others.sum(1).clamp(min=1))[~alone].mean())


def neighbours_by_size(images: int) -> int:
    """k of the kNN vote among so many training images: their root, at most the field's 200."""
    return max(1, min(MOST_NEIGHBOURS, round(images**0.5)))


def knn_scores(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, k: int, balanced: bool = False
) -> Tensor:
    """(n, C) votes of the k nearest features of the bank, each of weight exp(cosine / 0.07).

    The weighted vote of Wu et al. 2018 (instance discrimination), with their τ = 0.07. All that are as
    near as the k-th vote: features that have fallen onto one point are not told apart by their order in the bank.

    Args:
        queries: (n, D) unit. bank: (m, D) unit; fewer than k vote as a whole. bank_labels: (m,) int64 in [0, C).
        balanced: divide a vote by the number of its class's images in the bank.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    if not (queries.isfinite().all() and bank.isfinite().all()):
        raise FloatingPointError("a feature is not finite")
    scores = queries.new_zeros(len(queries), num_classes)
    sizes = torch.bincount(bank_labels, minlength=num_classes).clamp(min=1) if balanced else 1
    slack = ROUNDING * torch.finfo(queries.dtype).eps
    for rows, part in zip(scores.split(BLOCK), queries.split(BLOCK), strict=True):
        cosines = part @ bank.T  # (n, m)
        last = cosines.topk(min(k, len(bank))).values[:, -1:]  # (n, 1)
        query, near = (cosines >= last - slack).nonzero(as_tuple=True)  # n·k pairs, and ties
        votes = (cosines[query, near] / KNN_TEMPERATURE).exp()
        rows.index_put_((query, bank_labels[near]), votes, accumulate=True)
    return scores / sizes
