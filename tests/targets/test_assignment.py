"""The assignment that remembers: as good as a full solve at every step, and rarely one itself."""

import copy
import doctest
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from moco.targets import assignment
from moco.targets.assignment import FREE, Assignment, prices
from tests import oracle
from tests.tiny import tiny_batch, tiny_model, unit


def walk(targets: Tensor, nearness: float, steps: int, batch: int, start: str = "settled"):
    """Centroids (C, D) step by step: each batch moves its classes towards noisy features of theirs.

    nearness: how much of a class's mean feature is a target; the rest is a random direction.
    """
    num_classes, dim = targets.shape
    mean = normalize(nearness * targets[torch.randperm(num_classes)] + (1 - nearness) * unit(num_classes, dim), dim=1)
    centroids = (mean if start == "settled" else unit(num_classes, dim)).clone()
    for _ in range(steps):
        y = torch.randint(num_classes, (batch,)).unique()
        feature = normalize(mean[y] + unit(len(y), dim), dim=1)
        centroids[y] = normalize(0.9 * centroids[y] + 0.1 * feature, dim=1)
        yield centroids.to(targets.dtype)


def assert_best(solver: Assignment, centroids: Tensor, targets: Tensor) -> None:
    column = solver.solve(centroids)
    similarity = (centroids.double() @ targets.double().T).numpy()
    row, best = linear_sum_assignment(similarity, maximize=True)
    assert sorted(column) == row.tolist()
    assert similarity[row, column].sum() == pytest.approx(similarity[row, best].sum(), abs=1e-10)


@pytest.mark.parametrize("start", ["settled", "random"])
@pytest.mark.parametrize("nearness", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("num_classes", "steps", "batch"), [(2, 30, 1), (7, 100, 3), (60, 60, 4), (300, 25, 40)])
def test_every_step_of_a_walk_is_as_good_as_a_full_solve(num_classes, steps, batch, nearness, start):
    targets = unit(num_classes, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, nearness, steps, batch, start):
        assert_best(solver, centroids, targets)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["settled", "random"])
@pytest.mark.parametrize("nearness", [0.0, 0.3, 0.6])
def test_a_walk_of_2000_classes(nearness, start):
    targets = unit(2000, 128).float()
    solver = Assignment(targets)
    for centroids in walk(targets, nearness, 100, 256, start):
        assert_best(solver, centroids, targets)


def count_calls(monkeypatch, where, name: str) -> list:
    calls, function = [], getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args: calls.append(args) or function(*args))
    return calls


def test_a_settled_walk_is_solved_in_full_once(monkeypatch):
    full = count_calls(monkeypatch, Assignment, "_start_afresh")
    repaired = count_calls(monkeypatch, assignment, "shortest_chain")
    targets = unit(100, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.3, 100, 5):
        solver.solve(centroids)
    assert len(full) == 1
    assert 0 < len(repaired) < 100 * 5


def test_a_repair_without_proof_is_not_believed(monkeypatch):
    """A search that keeps whatever target was given up: the next lines find it out and solve in full."""

    def keep_any(cost, price, class_of, loser):
        return [(loser, np.flatnonzero(class_of == FREE)[0])], price

    monkeypatch.setattr(assignment, "shortest_chain", keep_any)
    full = count_calls(monkeypatch, Assignment, "_start_afresh")
    targets = unit(60, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.3, 30, 4):
        assert_best(solver, centroids, targets)
    assert len(full) > 1


def test_the_past_does_not_show():
    targets, centroids = unit(50, 8).float(), unit(50, 8).float()
    solver = Assignment(targets)
    for earlier in walk(targets, 0.0, 20, 10):
        solver.solve(earlier)
    fresh = oracle.full_assignment(centroids, targets)
    assert np.array_equal(solver.solve(centroids), fresh)
    assert np.array_equal(Assignment(targets).solve(centroids), fresh)


def test_the_example_of_a_chain():
    assert doctest.testmod(assignment) == (0, 3)


def test_prices_prove_the_best_permutation_and_no_other():
    cost = torch.rand(40, 40, dtype=torch.float64)
    row, column = linear_sum_assignment(cost.numpy())
    offer = cost.numpy() + prices(cost, column)
    assert (offer[row, column] <= offer.min(axis=1) + assignment.TOLERANCE).all()
    column[:2] = column[1::-1]
    with pytest.raises(ArithmeticError, match="no proof"):
        prices(cost, column)


def test_prices_stay_small_on_a_long_walk():
    targets = unit(20, 3).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.0, 3000, 2):
        solver.solve(centroids)
        assert 0 <= solver._price.min() < 1 and solver._price.max() < 10


def test_features_that_diverge_are_said_and_forgotten():
    targets, centroids = unit(6, 4), unit(6, 4)
    solver = Assignment(targets)
    solver.start(centroids.clone().index_fill_(0, torch.tensor([2]), torch.nan))
    with pytest.raises(FloatingPointError, match="a class centroid is not finite"):
        solver.result()
    solver.start(centroids)
    assert torch.equal(solver.result(), oracle.full_assignment(centroids, targets))


def test_a_result_nobody_asked_for_is_left(monkeypatch):
    """The second start waits: the first still reads the centroids that it would overwrite."""
    targets, first, second = unit(40, 4), unit(40, 4), unit(40, 4)
    solver, solve = Assignment(targets), Assignment.solve

    def slow_solve(self, centroids: Tensor) -> np.ndarray:
        before = centroids.clone()
        time.sleep(0.05)
        assert torch.equal(centroids, before)
        seen.append(before)
        return solve(self, centroids)

    seen = []
    monkeypatch.setattr(Assignment, "solve", slow_solve)
    solver.start(first)
    solver.start(second)
    assert torch.equal(solver.result(), oracle.full_assignment(second, targets))
    assert torch.equal(seen[0], first) and torch.equal(seen[1], second)


def test_a_model_in_the_tsc_phase_can_be_copied():
    model = tiny_model(targeted=True, sep_t=True)
    model(*tiny_batch())
    batch = tiny_batch()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(*batch).loss, model(*batch).loss)


def test_the_interval_keeps_an_assignment_until_its_step():
    """Steps 0, 3, 6 solve; in between, and nowhere else, the assignment is that of the last."""
    model = tiny_model(targeted=True, sep_t=True, assignment_interval=3)
    for step in range(8):
        model(*tiny_batch())
        if step % 3 == 0:
            solved = oracle.full_assignment(model.class_centroid, model.optimal_target)
        assert torch.equal(model.assignment, solved)
        with torch.no_grad():
            model.class_centroid.copy_(unit(3, 4))


def test_new_targets_from_a_checkpoint_are_assigned():
    model, other = tiny_model(targeted=True, sep_t=True), tiny_model()
    model(*tiny_batch())
    model.load_state_dict(other.state_dict())
    model(*tiny_batch())
    assert torch.equal(model.assignment, oracle.full_assignment(model.class_centroid, other.optimal_target))
