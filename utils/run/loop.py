"""The epochs of a run, its phases, and the learning-rate schedule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch.optim import Optimizer

from utils.configs import FromArgs
from utils.errors import InputError
from utils.optimizers import LR_FACTOR_KEY
from utils.run.state import RunState

# Runs from random weights that are shorter than this rarely show what a method can do. The recipe of Fashion-MNIST has
# about as many steps.
ENOUGH_STEPS = 4000


class Phase(NamedTuple):
    """Consecutive epochs with their own optimiser and schedule. name: None in a run without named phases."""

    name: str | None
    start: int
    epochs: int


@dataclass(frozen=True)
class Schedule(FromArgs):
    """The learning rate over a phase.

    Attributes:
        lr: initial learning rate.
        milestones: epochs of the phase at which the learning rate drops to a tenth, unless `cosine` is set.
        cosine: whether the learning rate decays from `lr` to `end` along a cosine.
        warmup_epochs: epochs in which the learning rate rises linearly, step by step, from `warmup_from` to its value
            in the schedule.
    """

    lr: float
    milestones: Sequence[int] = field(default=(), metadata={"flag": "schedule"})
    cosine: bool = field(default=False, metadata={"flag": "cos"})
    end: float = field(default=0.0, metadata={"flag": "lr_end"})
    warmup_epochs: int = 0
    warmup_from: float = 0.0

    def check(self, phases: list[Phase]) -> None:
        """Raise InputError unless the schedule fits each phase that is trained."""
        shortest = min(phase.epochs for phase in phases if phase.epochs)
        if self.warmup_epochs >= shortest:
            raise InputError(f"--warmup-epochs {self.warmup_epochs}: expected less than a phase's {shortest} epochs")
        if self.warmup_epochs and self.warmup_from > self.lr:
            raise InputError(f"--warmup-from {self.warmup_from:g}: expected at most --lr {self.lr:g}")
        if self.end > self.lr:
            raise InputError(f"--lr-end {self.end:g}: expected at most --lr {self.lr:g}")

    def set_lr(self, optimizer: Optimizer, epoch: "Epoch", step: int) -> None:
        """Set the optimiser's learning rate for a step of an epoch. The schedule restarts with each phase."""
        lr = self.lr_at_step(epoch.number - epoch.phase.start, epoch.phase.epochs, step, epoch.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get(LR_FACTOR_KEY, 1.0)

    def lr_at_epoch(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch (from 0) in a phase of `epochs` epochs, without warm-up.

        Cosine: end + (lr - end) · ½(1 + cos(π epoch / epochs)). Otherwise: lr · 0.1 ** (milestones passed).
        """
        if self.cosine:
            return self.end + (self.lr - self.end) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def lr_at_step(self, epoch: int, epochs: int, step: int, steps: int) -> float:
        """Return the learning rate of a step (from 0) in an epoch of `steps` steps, with warm-up."""
        if epoch >= self.warmup_epochs:
            return self.lr_at_epoch(epoch, epochs)
        progress = (epoch * steps + step) / (self.warmup_epochs * steps)
        return self.warmup_from + progress * (self.lr_at_epoch(self.warmup_epochs, epochs) - self.warmup_from)


class Epoch(NamedTuple):
    """An epoch to train, or the remaining steps of a resumed epoch.

    A run that is interrupted and resumed consists of several launches of the program.

    Attributes:
        number: index in the run, from 0.
        first_step: first step to train; above 0 if the epoch is resumed.
        steps: steps per epoch.
        total: epochs of the run.
        starts_phase: whether it is the first epoch of its phase that this launch of the program trains.
        fresh: whether it is the first epoch of its phase, of which no step has been trained yet.
    """

    phase: Phase
    number: int
    first_step: int
    steps: int
    total: int
    starts_phase: bool
    fresh: bool

    @property
    def title(self) -> str:
        return f"Epoch: [{self.number + 1}/{self.total}]" + (f" {self.phase.name}" if self.phase.name else "")


def epochs(phases: list[Phase], state: RunState, steps: int) -> Iterator[Epoch]:
    """Yield the remaining epochs of these phases, beginning at `state.epoch` and `state.step`.

    Args:
        steps: steps per epoch.
    """
    start, step, total = state.epoch, state.step, sum(phase.epochs for phase in phases)
    done = start * steps + step
    for phase in phases:
        first = max(phase.start, start)
        for number in range(first, phase.start + phase.epochs):
            starts_phase = number == first
            fresh = starts_phase and done <= phase.start * steps
            yield Epoch(phase, number, step if number == start else 0, steps, total, starts_phase, fresh)


def get_lr(optimizer: Optimizer) -> float:
    """Return the learning rate of the first parameter group."""
    return optimizer.param_groups[0]["lr"]
