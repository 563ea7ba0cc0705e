"""Learning rate over the epochs of a phase."""

import math

from torch.optim import Optimizer


def learning_rate(base: float, epoch: int, epochs: int, milestones: list[int], cosine: bool) -> float:
    """The rate of an epoch (counted from 0) in a phase of `epochs`.

    Cosine: base · ½(1 + cos(π epoch / epochs)). Else: base · 0.1 for each milestone passed.
    """
    if cosine:
        return base * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return base * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
