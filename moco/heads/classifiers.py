"""What becomes a network's `fc`: features (N, d) to logits (N, C), in float32 whatever --amp says."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils import skip_init

from moco.losses import at_least_float32
from utils.errors import InputError

NEVER = -1e6  # the logit of a class without a training image


def full_precision(device: torch.device) -> AbstractContextManager:
    """Turns --amp off where it is on; else nothing, which a program of the network could not hold."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


class Float32Linear(nn.Linear):
    """A Linear that --amp leaves alone: logits of eight bits would often tie."""

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return super().forward(at_least_float32(x))


def linear_classifier(weight: Tensor, bias: Tensor) -> Float32Linear:
    """Of weight (C, d) and bias (C,)."""
    fc = skip_init(Float32Linear, weight.shape[1], weight.shape[0])
    with torch.no_grad():
        fc.weight.copy_(weight)
        fc.bias.copy_(bias)
    return fc


class CosineClassifier(nn.Module):
    """scale · cos(x, w_c) + b_c (Gidaris and Komodakis 2018). weight: (C, d). scale: a scalar. bias: (C,)."""

    def __init__(self, weight: Tensor, scale: float | Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.float().clone())
        self.scale = nn.Parameter(torch.as_tensor(scale, dtype=torch.float32).clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            cosines = linear(normalize(at_least_float32(x), dim=1), normalize(self.weight, dim=1))
            return self.scale * cosines + self.bias


class Projected(nn.Module):
    """A classifier behind the projection head of stage 1, (N, d) -> (N, D)."""

    def __init__(self, projection: nn.Module, classifier: nn.Module):
        super().__init__()
        self.projection, self.classifier = copy.deepcopy(projection), classifier

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return self.classifier(self.projection(at_least_float32(x)))

    @property
    def bias(self) -> nn.Parameter:
        return self.classifier.bias


@torch.no_grad()
def without_absent(classifier: nn.Module, counts: Tensor) -> nn.Module:
    """The same, which answers no class without a training image: its prior would be as if it had one. counts: (C,)."""
    classifier.bias[counts == 0] = NEVER
    return classifier


def fitted_classifier(weights: dict[str, Tensor], source: object) -> nn.Module:
    """The classifier of a network whose head was fitted, without its numbers. weights: the network's.

    Raises:
        InputError: it has none of those kinds.
    """
    fc = {name.removeprefix("fc."): weight for name, weight in weights.items() if name.startswith("fc.")}
    try:
        return _like(fc)
    except (KeyError, ValueError, IndexError, TypeError):
        raise InputError(f"checkpoint {source}: its fc is {sorted(fc)}, expected a head that was fitted") from None


def _like(weights: dict[str, Tensor]) -> nn.Module:
    if "classifier.weight" in weights:
        projection = {name: weight for name, weight in weights.items() if name.startswith("projection.")}
        inner = {name.removeprefix("classifier."): weight for name, weight in weights.items()}
        classifier = _like({name: inner[name] for name in ("weight", "scale", "bias")})
        return Projected(projection_like(projection), classifier)
    empty = torch.zeros_like(weights["weight"], device="cpu")
    return CosineClassifier(empty, 1.0) if "scale" in weights else linear_classifier(empty, empty[:, 0])


def projection_like(weights: dict[str, Tensor]) -> nn.Module:
    """A projection head of stage 1, without its numbers. weights: its own, by names that end as in it."""
    layers = [nn.Linear(*reversed(weight.shape)) for name, weight in weights.items() if name.endswith("weight")]
    return layers[0] if len(layers) == 1 else nn.Sequential(layers[0], nn.ReLU(), layers[1])
