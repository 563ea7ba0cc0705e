"""Chains of classes that each move on: shortest, with prices that prove it."""

import doctest

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moco.targets import assignment
from moco.targets.assignment import Assignment, shortest_chains
from tests.tiny import unit


def test_the_example_of_a_chain():
    assert doctest.testmod(assignment) == (0, 4)


def test_chains_keep_the_proof_and_share_no_class():
    """All classes are losers: the prices after some chains prove the targets that were found."""
    cost, price = np.random.default_rng(0).random((40, 40)), np.zeros(40)
    near, target, losers = np.tile(np.arange(40), (40, 1)), np.arange(40), np.arange(40)
    while len(losers):
        pays = cost[np.arange(40), target] + price[target]
        chains, price = shortest_chains(near, cost, target, pays, price, losers)
        movers = [mover for chain in chains for mover, _ in chain]
        assert chains and len(movers) == len(set(movers))
        waiting = sorted(set(losers.tolist()) - set(movers))
        left = sorted(set(target[losers].tolist()) - {chain[0][1] for chain in chains})
        for mover, to in (move for chain in chains for move in chain):
            target[mover] = to
        target[waiting], losers = left, np.array(waiting, dtype=int)
        settled = np.setdiff1d(np.arange(40), losers)
        offer = cost[settled] + price
        assert (offer[np.arange(len(settled)), target[settled]] <= offer.min(axis=1) + assignment.TOLERANCE).all()
    assert target.tolist() == linear_sum_assignment(cost)[1].tolist()


@pytest.mark.parametrize(
    ("of_two", "chains", "price"),
    [
        ([1, 2], [[(2, 2)]], [0, 1, 0, 0, 0, 0, 0]),  # to its own, at a loss of 1
        ([1, 0], [], [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_lists_that_lead_to_few_of_the_targets_given_up(of_two, chains, price):
    """Of seven classes all but 0 and 1 give up their targets, and no list leads there, but for class 2's."""
    near = np.array([[0, 1], [1, 0], of_two, *[[1, 0]] * 4])
    cost, zero = np.tile([0.0, 1.0], (7, 1)), np.zeros(7)
    found, risen = shortest_chains(near, cost, np.arange(7), zero, zero, losers=np.arange(2, 7))
    assert (found, risen.tolist()) == (chains, price)


def test_losers_whose_lists_lead_nowhere_are_looked_at_again(monkeypatch):
    targets = unit(60, 16).float()
    solver = Assignment(targets)
    solver.solve(targets)
    monkeypatch.setattr(assignment, "shortest_chains", lambda *lists: ([], solver._price))
    assert solver._doubtful(solver._move_on(np.array([3, 5]))).tolist() == [3, 5]
