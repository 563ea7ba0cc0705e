"""Learning-rate schedules, and the phases that restart them."""

from argparse import Namespace
from dataclasses import replace

import pytest
from torch import nn

from moco.methods import METHODS
from tests.refusals import refusal
from utils.optimizers import sgd
from utils.run.loop import Phase, Schedule, epochs, get_lr
from utils.run.state import RunState


def make_phases(epochs: int, targeted: bool) -> list:
    return METHODS["queue"].load()(Namespace(epochs=epochs, targeted=targeted, kcl_epochs=None)).phases()


def test_cosine_schedule_by_hand():
    rates = [Schedule(0.1, cosine=True).lr_at_epoch(epoch, 4) for epoch in range(5)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 0])


def test_step_schedule_divides_by_10_at_milestones():
    rates = [Schedule(10, [60, 80]).lr_at_epoch(epoch, 100) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([10, 10, 1, 1, 0.1, 0.1])


def test_cosine_ends_at_lr_end():
    rates = [Schedule(0.5, cosine=True, end=0.1).lr_at_epoch(epoch, 2) for epoch in range(3)]
    assert rates == pytest.approx([0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    ("schedule", "after"), [(Schedule(0.5, cosine=True, end=0.1), 0.3), (Schedule(0.5, [2]), 0.05)]
)
def test_warmup_rises_linearly_to_the_schedule(schedule, after):
    """The warm-up lasts two of four epochs, with two steps each."""
    schedule = replace(schedule, warmup_epochs=2, warmup_from=0.01)
    rates = [schedule.lr_at_step(epoch, 4, step, 2) for epoch in (0, 1) for step in (0, 1)]
    assert rates == pytest.approx([0.01 + quarter / 4 * (after - 0.01) for quarter in range(4)])
    assert {schedule.lr_at_step(2, 4, step, 2) for step in (0, 1)} == {schedule.lr_at_epoch(2, 4)}


def test_each_phase_has_its_own_warmup():
    optimizer = sgd(nn.Linear(1, 1).parameters(), 0.5, 0.9, 0)
    schedule, seen = Schedule(0.5, cosine=True, warmup_epochs=1, warmup_from=0.1), []
    for epoch in epochs([Phase("KCL", 0, 2), Phase("TSC", 2, 2)], RunState(), steps=1):
        schedule.set_lr(optimizer, epoch, 0)
        seen.append(get_lr(optimizer))
    assert seen == pytest.approx([0.1, 0.25, 0.1, 0.25])


@pytest.mark.parametrize(
    ("schedule", "facts"),
    [
        (Schedule(0.5, warmup_epochs=2), ["--warmup-epochs", 2]),
        (Schedule(0.1, warmup_epochs=1, warmup_from=0.2), ["--warmup-from", 0.2, "--lr", 0.1]),
        (Schedule(0.1, cosine=True, end=0.2), ["--lr-end", 0.2, "--lr", 0.1]),
    ],
)
def test_invalid_schedule_is_refused(schedule, facts):
    refusal(lambda: schedule.check([Phase("KCL", 0, 3), Phase("TSC", 3, 2)]), *facts)
    Schedule(0.1, warmup_epochs=1).check([Phase("KCL", 0, 0), Phase("TSC", 0, 2)])


def test_kcl_has_one_phase():
    assert make_phases(200, targeted=False) == [("KCL", 0, 200)]


@pytest.mark.parametrize(("epochs", "warm_up"), [(400, 200), (5, 2), (1, 0)])
def test_tsc_trains_half_of_the_epochs_with_kcl(epochs, warm_up):
    assert make_phases(epochs, targeted=True) == [("KCL", 0, warm_up), ("TSC", warm_up, epochs - warm_up)]


@pytest.mark.parametrize(
    ("epoch", "step", "expected"),
    [
        (0, 0, [("KCL", 0, 0, True, True), ("KCL", 1, 0, False, False), ("TSC", 2, 0, True, True)]),
        (0, 3, [("KCL", 0, 3, True, False), ("KCL", 1, 0, False, False), ("TSC", 2, 0, True, True)]),
        (1, 5, [("KCL", 1, 5, True, False), ("TSC", 2, 0, True, True)]),  # trained but not evaluated
        (2, 0, [("TSC", 2, 0, True, True)]),
        (2, 1, [("TSC", 2, 1, True, False)]),
        (3, 0, []),
    ],
)
def test_remaining_epochs_of_resumed_run(epoch, step, expected):
    """The run has two epochs of KCL and one of TSC, with 5 steps each."""
    two_and_one = [Phase("KCL", 0, 2), Phase("TSC", 2, 1)]
    remaining = epochs(two_and_one, RunState(epoch=epoch, step=step), steps=5)
    assert [(e.phase.name, e.number, e.first_step, e.starts_phase, e.fresh) for e in remaining] == expected
