"""Classifiers fitted to features that are there: pure functions, by SciPy's L-BFGS where they have no formula.

Letters: n training images, d features, C classes. Products with the features are in their type: float64 finds an
optimum to more digits, float32 in half the time and memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 8192  # images whose logits are there at a time
MOST_STEPS = 500  # of L-BFGS, where it gives up
FLAT = {torch.float64: 1e-6, torch.float32: 1e-4}  # the largest slope, of a mean loss, where it has arrived


class Fit(NamedTuple):
    """weight: (C, d). bias: (C,). converged: whether it is the optimum. scale: of a cosine classifier, else 1."""

    weight: Tensor
    bias: Tensor
    converged: bool = True
    scale: float = 1.0


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C, d) mean of each class's (n, d) features, 0 for a class without an image."""
    total = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    total.index_add_(0, labels, features.double())
    return total / torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(n,) weights of mean 1 with which every class that has an image counts alike."""
    counts = torch.bincount(labels, minlength=num_classes)
    return len(labels) / ((counts > 0).sum() * counts[labels].double())


def log_prior(counts: Tensor) -> Tensor:
    """(C,) log(n_c / n), Menon et al. 2021; of a class without an image as if it had one."""
    counts = counts.clamp(min=1).double()
    return (counts / counts.sum()).log()


def logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strength: float,
    weights: Tensor | None = None,
    offset: Tensor | None = None,
    start: Fit | None = None,
) -> Fit:
    """Multinomial logistic regression to its optimum, scikit-learn's objective divided by n·C:

        mean_i w_i cross_entropy(W z_i + b + offset, y_i) + |W|² / (2 n C)

    Args:
        features: (n, d). labels: (n,). strength: C, the inverse of the penalty. weights: (n,). offset: (C,), as
            t · log prior (logit adjustment while it is trained, t = 1: balanced softmax). start: where to begin.
    """
    d, n = features.shape[1], len(features)
    if start is None:
        start = Fit(torch.zeros(num_classes, d), torch.zeros(num_classes))
    offset = torch.zeros(num_classes) if offset is None else offset

    def loss(x: Tensor) -> tuple[float, Tensor]:
        weight, bias = x[:-num_classes].view(num_classes, d), x[-num_classes:]
        value, by_weight, by_bias = _cross_entropy(features, labels, weight, bias + offset, weights)
        value += float(weight.square().sum()) / (2 * n * strength)
        return value, torch.cat([(by_weight + weight / (n * strength)).flatten(), by_bias])

    x, converged = _descend(loss, torch.cat([start.weight.flatten(), start.bias]), features.dtype)
    return Fit(x[:-num_classes].view(num_classes, d), x[-num_classes:], converged)


def cosine(
    features: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None = None, offset: Tensor | None = None
) -> Fit:
    """A cosine classifier, Fit.scale · cos(w_c, z): directions and scale by cross-entropy, from the class means.

    Not convex: `converged` says that the gradient is small. Args as `logistic`'s.
    """
    unit, d = normalize(features, dim=1), features.shape[1]
    offset = torch.zeros(num_classes) if offset is None else offset

    def loss(x: Tensor) -> tuple[float, Tensor]:
        raw, log_scale = x[:-1].view(num_classes, d), x[-1]
        length = raw.norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction, scale = raw / length, log_scale.exp()
        value, by_weight, _ = _cross_entropy(unit, labels, scale * direction, offset, weights)
        by_direction = scale * by_weight
        by_raw = (by_direction - (by_direction * direction).sum(1, keepdim=True) * direction) / length
        by_log_scale = scale * (by_weight * direction).sum()
        return value, torch.cat([by_raw.flatten(), by_log_scale[None]])

    means = normalize(class_means(unit, labels, num_classes), dim=1)
    x, converged = _descend(loss, torch.cat([means.flatten(), torch.tensor([np.log(10.0)])]), features.dtype)
    directions = normalize(x[:-1].view(num_classes, d), dim=1)
    return Fit(directions, torch.zeros(num_classes), converged, float(x[-1].exp()))


def tau_normalised(fit: Fit, tau: float) -> Fit:
    """w_c / |w_c|^tau without bias (Kang et al. 2020): classes that are frequent have long weights."""
    return fit._replace(
        weight=fit.weight / fit.weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau,
        bias=torch.zeros_like(fit.bias),
    )


def learned_scales(fit: Fit, features: Tensor, labels: Tensor, weights: Tensor) -> Fit:
    """LWS (Kang et al. 2020): s_c · w_c, of which only the scales (C,) are trained, from 1, here to their optimum."""
    classes = len(fit.weight)

    def loss(scales: Tensor) -> tuple[float, Tensor]:
        value, by_weight, _ = _cross_entropy(features, labels, scales[:, None] * fit.weight, fit.bias, weights)
        return value, (by_weight * fit.weight).sum(1)

    scales, converged = _descend(loss, torch.ones(classes), features.dtype)
    return Fit(scales[:, None] * fit.weight, fit.bias, converged and fit.converged)


def _cross_entropy(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weights: Tensor | None
) -> tuple[float, Tensor, Tensor]:
    """The (weighted) mean loss over the images, and its gradients by weight (C, d) and bias (C,), some at a time."""
    value, by_weight, by_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
    shares = torch.full((len(labels),), 1 / len(labels)) if weights is None else weights / len(labels)
    w, b = weight.to(features.dtype), bias.to(features.dtype)
    for z, y, share in zip(features.split(BLOCK), labels.split(BLOCK), shares.double().split(BLOCK), strict=True):
        log_p = torch.addmm(b, z, w.T).log_softmax(1)  # (B, C)
        value -= float(log_p.gather(1, y[:, None])[:, 0].double() @ share)
        residual = log_p.exp_()
        residual[torch.arange(len(y)), y] -= 1
        residual *= share.to(residual.dtype)[:, None]
        by_weight += residual.T @ z
        by_bias += residual.sum(0)
    return value, by_weight, by_bias


def _descend(loss: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """The minimum by L-BFGS from `start`, and whether it is one to the digits of the type."""

    def as_numpy(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(torch.from_numpy(x))
        return value, gradient.double().numpy()

    options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": FLAT[dtype], "ftol": 0}
    found = minimize(as_numpy, start.double().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x), bool(np.abs(found.jac).max() <= 2 * FLAT[dtype])
