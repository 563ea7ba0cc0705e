"""The epochs of a run: its phases, and the optimiser and learning rate of each."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from utils.run.state import RunState


class Phase(NamedTuple):
    """A stretch of epochs with its own optimiser and schedule. name: None where there is but one."""

    name: str | None
    start: int
    epochs: int


class Epoch(NamedTuple):
    """An epoch that is to be trained, or what is left of it.

    number: of the run, from 0. first_step: 0, but where a run goes on within it. of: how many the run has.
    enters: whether it is the first one here of its phase. fresh: and nothing of the phase has been trained before.
    """

    phase: Phase
    number: int
    first_step: int
    of: int
    enters: bool
    fresh: bool

    @property
    def title(self) -> str:
        return f"Epoch: [{self.number + 1}/{self.of}]" + (f" {self.phase.name}" if self.phase.name else "")

    def learning_rate(self, base: float, milestones: list[int], cosine: bool) -> float:
        """See `learning_rate`: the schedule starts anew with each phase."""
        return learning_rate(base, self.number - self.phase.start, self.phase.epochs, milestones, cosine)


def epochs(phases: list[Phase], state: RunState, steps: int) -> Iterator[Epoch]:
    """What is left to train of these phases, from where `state` stands at the start.

    Args:
        steps: of an epoch.
    """
    start, step, of = state.epoch, state.step, sum(phase.epochs for phase in phases)
    done = start * steps + step
    for phase in phases:
        first = max(phase.start, start)
        for number in range(first, phase.start + phase.epochs):
            enters = number == first
            fresh = enters and done <= phase.start * steps
            yield Epoch(phase, number, step if number == start else 0, of, enters, fresh)


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


def sgd(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """torch's, but not its fused one.

    That one's momentum is garbage if the first step of --amp fp16 overflows, and on the CPU it rounds otherwise.
    """
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)
