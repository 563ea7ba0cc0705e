"""Shortest chains of classes that each change their target, with prices that prove optimality."""

import doctest

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moco.targets import assignment
from moco.targets import chains as chains_module
from moco.targets.assignment import Assignment
from moco.targets.chains import shortest_chains
from tests.tiny import unit_vectors


def test_doctest_of_chains():
    assert doctest.testmod(chains_module) == (0, 4)


def test_chains_are_disjoint_and_keep_the_proof():
    """No class has a target at the start. After each round, the prices prove the assignments made so far."""
    cost, price = np.random.default_rng(0).random((40, 40)), np.zeros(40)
    listed, target, unassigned = np.tile(np.arange(40), (40, 1)), np.arange(40), np.arange(40)
    while len(unassigned):
        current = cost[np.arange(40), target] + price[target]
        chains, price = shortest_chains(listed, cost, target, current, price, unassigned)
        movers = [mover for chain in chains for mover, _ in chain]
        assert chains and len(movers) == len(set(movers))
        still_unassigned = sorted(set(unassigned.tolist()) - set(movers))
        remaining = sorted(set(target[unassigned].tolist()) - {chain[0][1] for chain in chains})
        for mover, to in (move for chain in chains for move in chain):
            target[mover] = to
        target[still_unassigned], unassigned = remaining, np.array(still_unassigned, dtype=int)
        settled = np.setdiff1d(np.arange(40), unassigned)
        priced_cost = cost[settled] + price
        assert (
            priced_cost[np.arange(len(settled)), target[settled]] <= priced_cost.min(axis=1) + assignment.TOLERANCE
        ).all()
    assert target.tolist() == linear_sum_assignment(cost)[1].tolist()


@pytest.mark.parametrize(
    ("list_of_two", "chains", "price"),
    [
        ([1, 2], [[(2, 2)]], [0, 1, 0, 0, 0, 0, 0]),  # class 2 returns to its own target at a cost of 1
        ([1, 0], [], [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_chains_when_lists_reach_few_free_targets(list_of_two, chains, price):
    """Classes 2 to 6 give up their targets. Only the list of class 2 may contain one of these targets."""
    listed = np.array([[0, 1], [1, 0], list_of_two, *[[1, 0]] * 4])
    cost, zero = np.tile([0.0, 1.0], (7, 1)), np.zeros(7)
    found, new_price = shortest_chains(listed, cost, np.arange(7), zero, zero, unassigned=np.arange(2, 7))
    assert (found, new_price.tolist()) == (chains, price)


def test_unassigned_classes_without_chain_are_examined_again(monkeypatch):
    targets = unit_vectors(60, 16).float()
    solver = Assignment(targets)
    solver.solve(targets)
    monkeypatch.setattr(assignment, "shortest_chains", lambda *lists: ([], solver._price))
    assert solver._unproven(solver._reassign(np.array([3, 5]))).tolist() == [3, 5]
