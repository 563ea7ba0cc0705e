"""What --optimizer takes, and --clip-grad."""

import argparse
from collections.abc import Iterable

import torch
from torch import nn

FACTOR = "factor"  # of a group of parameters: its learning rate is this times the schedule's
TRUST = 0.001  # of LARS: the largest share of a weight's length that a step may be, at a learning rate of 1


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al. 2017) as MoCo v3 has them: vectors, of batch norm and biases, are left out.

    A matrix's gradient, weight decay included, is brought to TRUST · |w| before momentum. Vectors move as by SGD
    without weight decay.
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
                    length, of_step = weight.norm(), step.norm()
                    known = (length > 0) & (of_step > 0)  # on the device: the host does not wait
                    step = step * torch.where(known, TRUST * length / of_step, 1.0)
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                moving = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
                weight.sub_(moving * group["lr"])


def sgd(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """torch's, but not its fused one.

    That one's momentum is garbage if the first step of --amp fp16 overflows, and on the CPU it rounds otherwise.
    """
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adamw(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.AdamW:
    """torch's, with its own betas."""
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


# Of what they hold of a weight: the entries that are one number, whatever its shape.
SCALARS = {"step"}
OPTIMIZERS = {"sgd": sgd, "adamw": adamw, "lars": Lars}


def optimizer_of(args: argparse.Namespace, parameters: Iterable) -> torch.optim.Optimizer:
    """The optimiser of the flags; before each of its steps the gradients are cut to --clip-grad, if that is asked.

    Args:
        parameters: or groups of them, as torch's optimisers take; a group's FACTOR is its share of the learning rate.
    """
    parameters = [*parameters]
    optimizer = OPTIMIZERS[args.optimizer](parameters, args.lr, args.momentum, args.weight_decay)
    if args.clip_grad:  # behind the scale of --amp fp16, which is taken off before the optimiser's step
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: _clip(weights, args.clip_grad))
    return optimizer


def _clip(weights: list[nn.Parameter], length: float) -> None:
    nn.utils.clip_grad_norm_(weights, length)
