"""Modules for a network's `fc`, and the fits from which they are built.

A module maps features (N, d) to logits (N, C). It computes in float32, even with --amp.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils import skip_init

from moco.losses import at_least_float32
from utils.errors import InputError

ABSENT_CLASS_LOGIT = -1e6  # bias of a class without training images


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context that disables autocast if it is enabled, and a null context otherwise.

    Exported programs cannot contain the autocast context, hence the null context.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


class Float32Linear(nn.Linear):
    """A linear layer that ignores autocast, because bfloat16 logits (8 significant bits) often tie."""

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return super().forward(at_least_float32(x))


def linear_classifier(weight: Tensor, bias: Tensor) -> Float32Linear:
    """Build a linear classifier from weight (C, d) and bias (C,)."""
    fc = skip_init(Float32Linear, weight.shape[1], weight.shape[0])
    with torch.no_grad():
        fc.weight.copy_(weight)
        fc.bias.copy_(bias)
    return fc


class CosineClassifier(nn.Module):
    """Cosine classifier: scale · cos(x, w_c) + b_c (Gidaris and Komodakis 2018).

    Args:
        weight: (C, d).
        scale: Scalar.
        bias: (C,), or None for zeros.
    """

    def __init__(self, weight: Tensor, scale: float | Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.float().clone())
        self.scale = nn.Parameter(torch.as_tensor(scale, dtype=torch.float32).clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            cosines = linear(normalize(at_least_float32(x), dim=1), normalize(self.weight, dim=1))
            return self.scale * cosines + self.bias


class ProjectedClassifier(nn.Module):
    """A classifier on the output (N, D) of the stage-1 projection head."""

    def __init__(self, projection: nn.Module, classifier: nn.Module):
        super().__init__()
        self.projection, self.classifier = copy.deepcopy(projection), classifier

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return self.classifier(self.projection(at_least_float32(x)))


class Fit(NamedTuple):
    """A linear or cosine classifier, and how it was fitted.

    Attributes:
        weight: (C, d).
        bias: (C,).
        hyperparameters: By name, as in results.json.
        converged: Whether the fit reached the optimum.
        scale: Scale of a cosine classifier; None if the classifier is linear.
        projection: Maps features to the input of the classifier; None if they are the input.
    """

    weight: Tensor
    bias: Tensor
    hyperparameters: dict[str, float] = {}  # noqa: RUF012, never modified
    converged: bool = True
    scale: float | None = None
    projection: nn.Module | None = None

    def build_module(self, counts: np.ndarray) -> nn.Module:
        """Build the module, which never predicts a class without training images.

        The log prior treats such a class as if it had one image. Therefore its bias is set to a very low value.

        Args:
            counts: (C,) training images per class.
        """
        bias = self.bias.masked_fill(torch.from_numpy(counts == 0), ABSENT_CLASS_LOGIT)
        if self.scale is None:
            return linear_classifier(self.weight, bias)
        classifier = CosineClassifier(self.weight, self.scale, bias)
        return ProjectedClassifier(self.projection, classifier) if self.projection else classifier


def fitted_classifier(weights: dict[str, Tensor], source: object) -> nn.Module:
    """Build a classifier of the same kind and shape as a fitted `fc`. The weights are not copied.

    Args:
        weights: State dict of the network.
        source: Its file, for messages.

    Raises:
        InputError: The entries of `fc` match no known classifier.
    """
    fc = {name.removeprefix("fc."): weight for name, weight in weights.items() if name.startswith("fc.")}
    try:
        return _classifier_like(fc)
    except (KeyError, ValueError, IndexError, TypeError):
        raise InputError(
            f"checkpoint {source}: fc has {sorted(fc)}, expected the weights of a fitted classifier"
        ) from None


def _classifier_like(weights: dict[str, Tensor]) -> nn.Module:
    if "classifier.weight" in weights:
        projection = {name: weight for name, weight in weights.items() if name.startswith("projection.")}
        inner = {name.removeprefix("classifier."): weight for name, weight in weights.items()}
        classifier = _classifier_like({name: inner[name] for name in ("weight", "scale", "bias")})
        return ProjectedClassifier(projection_like(projection), classifier)
    empty = torch.zeros_like(weights["weight"], device="cpu")
    return CosineClassifier(empty, 1.0) if "scale" in weights else linear_classifier(empty, empty[:, 0])


def projection_like(weights: dict[str, Tensor]) -> nn.Module:
    """Build a stage-1 projection head of the same shape. The weights are not copied.

    weights: Tensors of its layers, in order; the names end in `weight` or `bias`.
    """
    layers = [
        nn.Linear(*reversed(weight.shape)) if weight.dim() == 2 else nn.BatchNorm1d(len(weight))
        for name, weight in weights.items()
        if name.endswith("weight")
    ]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers[:-1], nn.ReLU(), layers[-1])
