"""Learning rates, and the phases that restart them."""

from argparse import Namespace

import pytest

from moco.methods import METHODS
from utils.run.loop import Phase, epochs, learning_rate
from utils.run.state import RunState


def phases(epochs: int, targeted: bool) -> list:
    return METHODS["queue"](Namespace(epochs=epochs, targeted=targeted, kcl_epochs=None)).phases()


def test_cosine_by_hand():
    rates = [learning_rate(0.1, epoch, 4, [], cosine=True) for epoch in range(5)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 0])


def test_steps_drop_to_a_tenth_at_each_milestone():
    rates = [learning_rate(10, epoch, 100, [60, 80], cosine=False) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([10, 10, 1, 1, 0.1, 0.1])


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
