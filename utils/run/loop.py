"""The epochs of a run: its phases, and the optimiser and learning rate of each."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.optim import Optimizer

from utils.errors import InputError
from utils.optimizers import FACTOR
from utils.run.state import RunState


class Phase(NamedTuple):
    """A stretch of epochs with its own optimiser and schedule. name: None where there is but one."""

    name: str | None
    start: int
    epochs: int


class Schedule(NamedTuple):
    """The learning rate over a phase.

    base: at its start. cosine: from base to `end`, else a tenth at each of the milestones, epochs of the phase.
    warmup_epochs: in those it rises from `warmup_from` to what it is after them, at every step.
    """

    base: float
    milestones: Sequence[int] = ()
    cosine: bool = False
    end: float = 0.0
    warmup_epochs: int = 0
    warmup_from: float = 0.0

    @classmethod
    def asked(cls, args) -> "Schedule":
        """As the flags of the command line say."""
        return cls(args.lr, args.schedule, args.cos, args.lr_end, args.warmup_epochs, args.warmup_from)

    def check(self, phases: list[Phase]) -> None:
        """Raises InputError unless each phase that is trained can have it."""
        shortest = min(phase.epochs for phase in phases if phase.epochs)
        if self.warmup_epochs >= shortest:
            raise InputError(f"--warmup-epochs {self.warmup_epochs}: a phase has {shortest} epochs, expected less")
        if self.warmup_epochs and self.warmup_from > self.base:
            raise InputError(f"--warmup-from {self.warmup_from:g}: is above --lr {self.base:g}, expected at most that")
        if self.end > self.base:
            raise InputError(f"--lr-end {self.end:g}: is above --lr {self.base:g}, expected at most that")

    def of_epoch(self, epoch: int, epochs: int) -> float:
        """Without warm-up, of an epoch (counted from 0) in a phase of `epochs`.

        Cosine: end + (base - end) · ½(1 + cos(π epoch / epochs)). Else: base · 0.1 for each milestone passed.
        """
        if self.cosine:
            return self.end + (self.base - self.end) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        return self.base * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def of_step(self, epoch: int, epochs: int, step: int, steps: int) -> float:
        """Of a step (from 0) of an epoch of `steps`."""
        if epoch >= self.warmup_epochs:
            return self.of_epoch(epoch, epochs)
        risen = (epoch * steps + step) / (self.warmup_epochs * steps)
        return self.warmup_from + risen * (self.of_epoch(self.warmup_epochs, epochs) - self.warmup_from)


class Epoch(NamedTuple):
    """An epoch that is to be trained, or what is left of it.

    number: of the run, from 0. first_step: 0, but where a run goes on within it. steps: of an epoch. of: how many
    epochs the run has. enters: whether it is the first one here of its phase. fresh: and nothing of the phase has been
    trained before.
    """

    phase: Phase
    number: int
    first_step: int
    steps: int
    of: int
    enters: bool
    fresh: bool

    @property
    def title(self) -> str:
        return f"Epoch: [{self.number + 1}/{self.of}]" + (f" {self.phase.name}" if self.phase.name else "")

    def set_rate(self, optimizer: Optimizer, schedule: Schedule, step: int) -> None:
        """Give the optimiser the learning rate of a step; the schedule starts anew with each phase."""
        rate = schedule.of_step(self.number - self.phase.start, self.phase.epochs, step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(FACTOR, 1.0)


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
            yield Epoch(phase, number, step if number == start else 0, steps, of, enters, fresh)


def rate_of(optimizer: Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]
