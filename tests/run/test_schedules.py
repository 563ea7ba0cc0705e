"""Learning rates, and the phases that restart them."""

from argparse import Namespace

import pytest
from torch import nn

from moco.methods import METHODS
from tests.refusals import refusal
from utils.optimizers import sgd
from utils.run.loop import Phase, Schedule, epochs, rate_of
from utils.run.state import RunState


def phases(epochs: int, targeted: bool) -> list:
    return METHODS["queue"](Namespace(epochs=epochs, targeted=targeted, kcl_epochs=None)).phases()


def test_cosine_by_hand():
    rates = [Schedule(0.1, cosine=True).of_epoch(epoch, 4) for epoch in range(5)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 0])


def test_steps_drop_to_a_tenth_at_each_milestone():
    rates = [Schedule(10, [60, 80]).of_epoch(epoch, 100) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([10, 10, 1, 1, 0.1, 0.1])


def test_the_cosine_ends_at_lr_end():
    rates = [Schedule(0.5, cosine=True, end=0.1).of_epoch(epoch, 2) for epoch in range(3)]
    assert rates == pytest.approx([0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    ("schedule", "after"), [(Schedule(0.5, cosine=True, end=0.1), 0.3), (Schedule(0.5, [2]), 0.05)]
)
def test_the_rate_rises_step_by_step_to_what_the_schedule_has_after_the_warm_up(schedule, after):
    """Two of four epochs, two steps each."""
    schedule = schedule._replace(warmup_epochs=2, warmup_from=0.01)
    rates = [schedule.of_step(epoch, 4, step, 2) for epoch in (0, 1) for step in (0, 1)]
    assert rates == pytest.approx([0.01 + quarter / 4 * (after - 0.01) for quarter in range(4)])
    assert {schedule.of_step(2, 4, step, 2) for step in (0, 1)} == {schedule.of_epoch(2, 4)}


def test_each_phase_warms_up_anew():
    optimizer = sgd(nn.Linear(1, 1).parameters(), 0.5, 0.9, 0)
    schedule, seen = Schedule(0.5, cosine=True, warmup_epochs=1, warmup_from=0.1), []
    for epoch in epochs([Phase("KCL", 0, 2), Phase("TSC", 2, 2)], RunState(), steps=1):
        epoch.set_rate(optimizer, schedule, 0)
        seen.append(rate_of(optimizer))
    assert seen == pytest.approx([0.1, 0.25, 0.1, 0.25])


@pytest.mark.parametrize(
    ("schedule", "facts"),
    [
        (Schedule(0.5, warmup_epochs=2), ["--warmup-epochs", 2]),
        (Schedule(0.1, warmup_epochs=1, warmup_from=0.2), ["--warmup-from", 0.2, "--lr", 0.1]),
        (Schedule(0.1, cosine=True, end=0.2), ["--lr-end", 0.2, "--lr", 0.1]),
    ],
)
def test_a_schedule_that_no_phase_can_have_is_refused(schedule, facts):
    refusal(lambda: schedule.check([Phase("KCL", 0, 3), Phase("TSC", 3, 2)]), *facts)
    Schedule(0.1, warmup_epochs=1).check([Phase("KCL", 0, 0), Phase("TSC", 0, 2)])


def test_kcl_is_one_phase():
    assert phases(200, targeted=False) == [("KCL", 0, 200)]


@pytest.mark.parametrize(("epochs", "warm_up"), [(400, 200), (5, 2), (1, 0)])
def test_tsc_warms_up_for_half_of_the_epochs_rounded_down(epochs, warm_up):
    assert phases(epochs, targeted=True) == [("KCL", 0, warm_up), ("TSC", warm_up, epochs - warm_up)]


@pytest.mark.parametrize(
    ("epoch", "step", "expected"),
    [
        (0, 0, [("KCL", 0, 0, True, True), ("KCL", 1, 0, False, False), ("TSC", 2, 0, True, True)]),
        (0, 3, [("KCL", 0, 3, True, False), ("KCL", 1, 0, False, False), ("TSC", 2, 0, True, True)]),
        (1, 5, [("KCL", 1, 5, True, False), ("TSC", 2, 0, True, True)]),  # trained, and not yet measured
        (2, 0, [("TSC", 2, 0, True, True)]),
        (2, 1, [("TSC", 2, 1, True, False)]),
        (3, 0, []),
    ],
)
def test_the_epochs_that_are_left_by_hand(epoch, step, expected):
    """Of two epochs of KCL and one of TSC, 5 steps each: phase, number, first step, enters, fresh."""
    two_and_one = [Phase("KCL", 0, 2), Phase("TSC", 2, 1)]
    left = epochs(two_and_one, RunState(epoch=epoch, step=step), steps=5)
    assert [(e.phase.name, e.number, e.first_step, e.enters, e.fresh) for e in left] == expected
