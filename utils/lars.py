"""The optimiser LARS."""

from collections.abc import Iterable

import torch
from torch import nn

TRUST_COEFFICIENT = 0.001  # norm of a step relative to the weight's norm, at a learning rate of 1


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as in MoCo v3, which excludes biases and batch norm.

    The gradient of a matrix, including weight decay, is scaled to the norm TRUST_COEFFICIENT · |w| before momentum.
    Vectors are updated by SGD without weight decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                step = weight.grad
                if weight.ndim > 1:
                    step = step.add(weight, alpha=group["weight_decay"])
                    weight_norm, step_norm = weight.norm(), step.norm()
                    nonzero = (weight_norm > 0) & (step_norm > 0)  # stays on the device, so that the host does not wait
                    step = step * torch.where(nonzero, TRUST_COEFFICIENT * weight_norm / step_norm, 1.0)
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum_buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
                weight.sub_(momentum_buffer * group["lr"])
