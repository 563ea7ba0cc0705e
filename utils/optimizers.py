"""The optimisers of --optimizer, and --clip-grad."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from utils.configs import FromArgs

LR_FACTOR_KEY = "factor"  # entry of a parameter group: its learning rate is the schedule's times this
TRUST_COEFFICIENT = 0.001  # of LARS: norm of a step relative to the weight's norm, at a learning rate of 1


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


def sgd(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return torch's SGD, not fused.

    The fused version has a corrupt momentum if the first step of --amp fp16 overflows, and rounds differently on CPUs.
    """
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adamw(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.AdamW:
    """Return torch's AdamW with its default betas; `momentum` is ignored."""
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


# Entries of an optimiser's state that are a single number for any shape of weight.
SCALAR_STATE = {"step"}
OPTIMIZERS = {"sgd": sgd, "adamw": adamw, "lars": Lars}


@dataclass(frozen=True)
class OptimizerConfig(FromArgs):
    """The flags of the optimiser; see --help."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip_grad: float | None

    def build(self, parameters: Iterable) -> torch.optim.Optimizer:
        """Build the optimiser of the flags. With --clip-grad, it clips the gradients before each step.

        Args:
            parameters: parameters or parameter groups, as for torch's optimisers. The entry LR_FACTOR_KEY of a group
                multiplies the group's learning rate.
        """
        optimizer = OPTIMIZERS[self.optimizer]([*parameters], self.lr, self.momentum, self.weight_decay)
        if self.clip_grad:  # in a pre-step hook, because --amp fp16 unscales the gradients just before the step
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            optimizer.register_step_pre_hook(lambda *_: _clip(weights, self.clip_grad))
        return optimizer

    def state_bytes(self, weights: Iterable[nn.Parameter]) -> int:
        """Return the bytes that the optimiser keeps beside the weights, such as momentum, after its first step."""
        example = nn.Parameter(torch.zeros(2))
        example.grad = torch.zeros(2)
        optimizer = self.build([example])
        optimizer.step()
        kept = [entry for entry in optimizer.state[example].values() if isinstance(entry, torch.Tensor)]
        copies = sum(entry.shape == example.shape for entry in kept)
        return copies * sum(weight.numel() * weight.element_size() for weight in weights)


def _clip(weights: list[nn.Parameter], max_norm: float) -> None:
    nn.utils.clip_grad_norm_(weights, max_norm)
