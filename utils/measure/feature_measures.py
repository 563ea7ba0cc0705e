"""Measures of a feature space, as pure functions: class centres, alignment, uniformity, neural neural_collapse, kNN."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

MAX_NEIGHBOURS, KNN_TEMPERATURE = 200, 0.07  # as in instance discrimination, MoCo and DINO
BLOCK = 64  # queries that are compared with the bank at once, which bounds the memory
ROUNDING = 8  # in units of the float's eps: closer cosines count as equal, because matrix products are rounded


def class_centres(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the normalised class means, (C, D), of unit features, (n, D); nan for a class without an image."""
    total = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    empty = torch.bincount(labels, minlength=num_classes) == 0
    return normalize(total, dim=1).masked_fill(empty[:, None], float("nan"))


def alignment(features: Tensor, labels: Tensor) -> float:
    """Return the alignment A: the mean over classes of the mean distance between two images; lower is tighter.

    All |F_y|² ordered pairs count, including pairs of an image with itself, as in the paper's equation. Classes without
    an image are skipped.

    Args:
        features: (n, D) unit features.
        labels: (n,) int64.
    """
    means = [_distances(features[labels == label]).mean() for label in labels.unique()]
    return float(torch.stack(means).mean())


def uniformity(centres: Tensor) -> float | None:
    """Return the uniformity U: the mean distance between two different class centres (U_k with all others as k)."""
    return neighbourhood_uniformity(centres, len(centres))


def default_uniformity_k(num_classes: int) -> int:
    """Return k of U_k: 10, but at most a third of the other classes (with k = all others, U_k equals U)."""
    return max(1, min(10, (num_classes - 1) // 3))


def neighbourhood_uniformity(centres: Tensor, k: int) -> float | None:
    """Return U_k: the mean distance of a class centre to its k nearest ones; higher is more even.

    If fewer than k others exist, all of them count. With fewer than two centres, U_k is None.

    Args:
        centres: (C, D) unit vectors; rows of nan are skipped.
    """
    centres = centres[centres.isfinite().all(dim=1)]
    others = len(centres) - 1
    if others < 1:
        return None
    distances = _distances(centres).fill_diagonal_(float("inf"))
    return float(distances.topk(min(k, others), largest=False).values.mean())


def _distances(points: Tensor) -> Tensor:
    # Matrix products would be faster, but lose the precision of small distances.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def neural_collapse(features: Tensor, labels: Tensor, num_classes: int) -> tuple[float | None, float | None]:
    """Return NC1 and NC2 of neural collapse (Papyan, Han and Donoho 2020); 0 is complete collapse.

    NC1 = tr(Σ_W Σ_B⁺) / C is the variance within classes relative to that of the class means. NC2 = mean over pairs of
    |cos(μ_c − μ, μ_c' − μ) + 1/(C − 1)| is the deviation of the means from a simplex; more than D + 1 classes cannot
    form one. C counts the classes that have an image, and μ is the mean of their means. Both values are None for fewer
    than two classes, or if all class means coincide.

    Args:
        features: (n, D).
        labels: (n,) int64.
    """
    present = torch.bincount(labels, minlength=num_classes) > 0
    classes = int(present.sum())
    features = features.double()
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    means = sums / torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]
    within = features - means[labels]
    between = means[present] - means[present].mean(0)
    if classes < 2 or float(between.abs().max()) < 1e-7:  # the rounding of unit features in float32
        return None, None
    inverse_covariance = torch.linalg.pinv(between.T @ between / classes, hermitian=True)
    directions = normalize(between, dim=1)
    pairs = ~torch.eye(classes, dtype=torch.bool, device=features.device)
    angles = ((directions @ directions.T)[pairs] + 1 / (classes - 1)).abs().mean()
    return float(((within @ inverse_covariance) * within).sum() / len(features) / classes), float(angles)


def reasonability(targets: Tensor, superclasses: Tensor) -> float:
    """Return the reasonability R: the mean distance of a class's target to those of its superclass.

    The measure is from the paper's supplement. R is lower if classes of the same superclass have nearby targets.

    Args:
        targets: (C, D); row y is the target of class y.
        superclasses: (C,) int64, such as those of CIFAR-100. A class that is alone in its superclass is skipped.
    """
    others = (superclasses[:, None] == superclasses).fill_diagonal_(False)  # (C, C)
    near = (_distances(targets) * others).sum(1)
    alone = others.sum(1) == 0
    return float((near / others.sum(1).clamp(min=1))[~alone].mean())


def default_knn_k(images: int) -> int:
    """Return k of the kNN vote: the square root of the number of training images, at most 200 as in earlier work."""
    return max(1, min(MAX_NEIGHBOURS, round(images**0.5)))


def knn_scores(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, k: int, balanced: bool = False
) -> Tensor:
    """Return the votes, (n, C), of the k nearest features in the bank, each with weight exp(cosine / 0.07).

    This is the weighted vote of Wu et al. 2018 (instance discrimination) with their τ = 0.07. All features that are as
    near as the k-th one vote, so that the result for collapsed features does not depend on their order in the bank.

    Args:
        queries: (n, D) unit features.
        bank: (m, D) unit features; if m < k, all of them vote.
        bank_labels: (m,) int64 in [0, C).
        balanced: divide each vote by the number of images of its class in the bank.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    if not (queries.isfinite().all() and bank.isfinite().all()):
        raise FloatingPointError("a feature is not finite")
    scores = queries.new_zeros(len(queries), num_classes)
    sizes = torch.bincount(bank_labels, minlength=num_classes).clamp(min=1) if balanced else 1
    slack = ROUNDING * torch.finfo(queries.dtype).eps
    for block_scores, block in zip(scores.split(BLOCK), queries.split(BLOCK), strict=True):
        cosines = block @ bank.T  # (n, m)
        last = cosines.topk(min(k, len(bank))).values[:, -1:]  # (n, 1)
        query, near = (cosines >= last - slack).nonzero(as_tuple=True)  # n · k pairs, plus ties
        votes = (cosines[query, near] / KNN_TEMPERATURE).exp()
        block_scores.index_put_((query, bank_labels[near]), votes, accumulate=True)
    return scores / sizes
