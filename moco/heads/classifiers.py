"""What becomes a network's `fc`: features (N, d) to logits (N, C), in float32 whatever --amp says."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils import skip_init

from moco.losses import at_least_float32


class Float32Linear(nn.Linear):
    """A Linear that --amp leaves alone: logits of eight bits would often tie."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
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
        with torch.autocast(x.device.type, enabled=False):
            cosines = linear(normalize(at_least_float32(x), dim=1), normalize(self.weight, dim=1))
            return self.scale * cosines + self.bias
