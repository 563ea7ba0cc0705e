"""Pure functions that fit classifiers to stored features, with SciPy's L-BFGS if there is no closed form.

Shapes: n training images, d features, C classes. Features are float64 or float32, on any device, and are multiplied
there in their own precision. float64 is more accurate. float32 takes half the time and memory. The fitted tensors are
on the CPU.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from moco.heads.classifiers import Fit

BLOCK = 8192  # images per block of logits
MAX_ITERATIONS = 500  # of L-BFGS
# L-BFGS stops under one of two conditions:
# 1. The largest gradient entry falls below its limit, GRADIENT_TOLERANCE times the largest entry at a reference point.
#    The reference point of logistic regression is W = 0, b = 0; other fits use their start.
# 2. An iteration lowers the loss by less than LOSS_TOLERANCE times its value. The fit has then converged if the
#    gradient is at most MAX_GRADIENT_EXCESS times its limit.
# With the limits for float32, the loss is within 1e-5 of its optimum. More digits would double the number of passes.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
LOSS_TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}
MAX_GRADIENT_EXCESS = {torch.float64: 10, torch.float32: 1000}


def class_means(features: Tensor, labels: Tensor, num_classes: int, normalise_features: bool = False) -> Tensor:
    """Return the mean of the features (n, d) of each class, (C, d) float64; zeros for a class without images.

    normalise_features: average the features scaled to unit length.
    """
    total = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    for z, y in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
        total.index_add_(0, y, normalize(z.double(), dim=1) if normalise_features else z.double())
    return (total / torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]).cpu()


def balanced_image_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return image weights (n,) with mean 1, with which all classes that have images count equally."""
    counts = torch.bincount(labels, minlength=num_classes)
    return (len(labels) / ((counts > 0).sum() * counts[labels].double())).cpu()


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    weights: Tensor | None = None,
    start: Fit | None = None,
    feature_scale: float = 1.0,
    intercept: bool = True,
) -> Fit:
    """Fit a multinomial logistic regression: find the W and b that minimise

        mean_i w_i cross_entropy(W z_i + b, y_i) + l2 / 2 · |W / feature_scale|²

    This is a multiple of scikit-learn's objective, whose parameter `C` is 1 / (n · l2).

    Args:
        features, labels, weights: z (n, d), y (n,) and w (n,). Without weights, all images count equally.
        start: Fit to start from; by default W = 0.
        feature_scale: Penalise W as if the features were multiplied by this factor.
        intercept: Whether to fit b.
    """
    d, mean = features.shape[1], torch.zeros(1, features.shape[1], dtype=torch.float64)
    if intercept:  # centred features have the same optimum, and converge faster because W and b are less coupled
        mean = class_means(features, torch.zeros_like(labels), 1)
    # Scale each class by its curvature, which is proportional to its share of the loss.
    share = _shares(labels, num_classes, weights)[:, None]
    weight_scale, bias_scale = feature_scale * (share + l2) ** -0.5, share**-0.5  # (C, 1), a diagonal preconditioner
    start = start or Fit(torch.zeros(num_classes, d), intercept * share[:, 0].log())

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = weight_scale * x[:, :d], (bias_scale * x[:, d:])[:, :1].sum(1)
        return weight, bias - (weight @ mean.T)[:, 0]

    def loss(x: Tensor) -> tuple[float, Tensor]:
        weight, bias = split(x.view(num_classes, -1))
        value, by_weight, by_bias = _cross_entropy(features, labels, weight, bias, weights)
        value += l2 / 2 * float((weight / feature_scale).square().sum())
        by_weight = weight_scale * (by_weight - by_bias[:, None] * mean + l2 / feature_scale**2 * weight)
        by_bias = bias_scale * by_bias[:, None]
        return value, torch.cat([by_weight, by_bias] if intercept else [by_weight], 1).flatten()

    weight, bias = start.weight.double(), start.bias.double() + (start.weight.double() @ mean.T)[:, 0]
    blocks = [weight / weight_scale, bias[:, None] / bias_scale] if intercept else [weight / weight_scale]
    x0 = torch.cat(blocks, 1).flatten()
    x, converged = _minimise(loss, x0, features.dtype, reference_point=torch.zeros_like(x0))
    return Fit(*split(x.view(num_classes, -1)), {"l2": l2}, converged)


def _shares(labels: Tensor, num_classes: int, weights: Tensor | None) -> Tensor:
    """Return each class's share of the loss, (C,). A class without images counts as one with one image."""
    counts = torch.bincount(labels.cpu(), weights, num_classes).double().clamp(min=1)
    return counts / counts.sum()


def fit_cosine(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    weights: Tensor | None = None,
    offset: Tensor | None = None,
    start: Fit | None = None,
) -> Fit:
    """Fit a cosine classifier: find the directions w_c and the scale s that minimise

        mean_i w_i cross_entropy(s · cos(w_c, z_i) + offset, y_i) + l2 / 2 · s²

    Without the penalty, s diverges if the classes are separable. The objective is not convex, so `converged` means only
    that the gradient is small. The fit starts from the class means, or from `start`.

    Args:
        features, labels, num_classes, l2, weights, start: As in `fit_logistic`.
        offset: (C,), such as the log prior (balanced softmax). It is not part of the fitted classifier.
    """
    unit_features, d = normalize(features, dim=1), features.shape[1]  # (n, d), the only copy of the features
    offset = torch.zeros(num_classes) if offset is None else offset

    def loss(x: Tensor) -> tuple[float, Tensor]:
        raw, log_scale = x[:-1].view(num_classes, d), x[-1]
        length = raw.norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction, scale = raw / length, log_scale.exp()
        value, by_weight, _ = _cross_entropy(unit_features, labels, scale * direction, offset, weights)
        value += l2 / 2 * float(scale**2)
        by_direction = scale * by_weight
        by_raw = (by_direction - (by_direction * direction).sum(1, keepdim=True) * direction) / length
        by_log_scale = scale * (by_weight * direction).sum() + l2 * scale**2
        return value, torch.cat([by_raw.flatten(), by_log_scale[None]])

    if start is None:
        means = class_means(unit_features, labels, num_classes)
        means[~means.any(dim=1)] = -means.sum(0)  # a class without images has no direction: point away from the others
        start = Fit(means, torch.zeros(num_classes), scale=1.0)
    x0 = torch.cat([normalize(start.weight.double(), dim=1).flatten(), torch.tensor([np.log(start.scale)])])
    x, converged = _minimise(loss, x0, features.dtype)
    directions = normalize(x[:-1].view(num_classes, d), dim=1)
    return Fit(directions, torch.zeros(num_classes), {"l2": l2}, converged, float(x[-1].exp()))


def normalise_by_tau(fit: Fit, tau: float) -> Fit:
    """Return w_c / |w_c|^tau without bias (Kang et al. 2020), because frequent classes have larger weight norms."""
    weight = fit.weight / fit.weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau
    return Fit(weight, torch.zeros_like(fit.bias), fit.hyperparameters | {"tau": tau}, fit.converged)


def fit_class_scales(fit: Fit, features: Tensor, labels: Tensor, weights: Tensor) -> Fit:
    """Fit LWS (Kang et al. 2020): s_c · w_c, where only the scales s (C,) are optimised, starting from 1."""
    classes = len(fit.weight)

    def loss(scales: Tensor) -> tuple[float, Tensor]:
        value, by_weight, _ = _cross_entropy(features, labels, scales[:, None] * fit.weight, fit.bias, weights)
        return value, (by_weight * fit.weight).sum(1)

    scales, converged = _minimise(loss, torch.ones(classes), features.dtype)
    return fit._replace(weight=scales[:, None] * fit.weight, converged=converged and fit.converged)


def _cross_entropy(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weights: Tensor | None
) -> tuple[float, Tensor, Tensor]:
    """Return the mean loss and its gradients with respect to weight (C, d) and bias (C,), computed in blocks."""
    device, kind = features.device, features.dtype
    w, b = weight.to(device, kind), bias.to(device, kind)
    value, by_weight, by_bias = 0.0, torch.zeros_like(w, dtype=torch.float64), torch.zeros_like(b, dtype=torch.float64)
    shares = torch.full((len(labels),), 1 / len(labels)) if weights is None else weights / len(labels)
    shares = shares.to(device, torch.float64)
    for z, y, share in zip(features.split(BLOCK), labels.split(BLOCK), shares.split(BLOCK), strict=True):
        log_p = torch.addmm(b, z, w.T).log_softmax(1)  # (B, C)
        value -= float(log_p.gather(1, y[:, None])[:, 0].double() @ share)
        residual = log_p.exp_()
        residual.scatter_add_(1, y[:, None], -torch.ones_like(residual[:, :1]))
        residual *= share.to(kind)[:, None]
        by_weight += residual.T @ z
        by_bias += residual.sum(0)
    return value, by_weight.cpu(), by_bias.cpu()


def _minimise(
    loss: Callable[[Tensor], tuple[float, Tensor]],
    x0: Tensor,
    dtype: torch.dtype,
    reference_point: Tensor | None = None,
) -> tuple[Tensor, bool]:
    """Minimise with L-BFGS. Return the minimum, and whether the fit converged.

    Args:
        loss: Returns the value and the gradient at a point.
        x0: Start.
        dtype: Precision of the loss, which determines the tolerances.
        reference_point: Where the gradient is measured for GRADIENT_TOLERANCE; by default x0.
    """
    from scipy.optimize import minimize  # imported here because it takes a third of a second

    def as_numpy(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(torch.from_numpy(x))
        return value, gradient.double().numpy()

    reference_point = x0 if reference_point is None else reference_point
    reference_gradient = np.abs(as_numpy(reference_point.double().numpy())[1]).max()
    gtol = GRADIENT_TOLERANCE[dtype] * max(float(reference_gradient), 1e-12)
    options = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": gtol, "ftol": LOSS_TOLERANCE[dtype]}
    options["maxcor"] = 30  # steps in memory: a third fewer passes over the features than with 10
    result = minimize(as_numpy, x0.double().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(result.x), bool(
        result.success and np.abs(result.jac).max() <= MAX_GRADIENT_EXCESS[dtype] * gtol
    )
