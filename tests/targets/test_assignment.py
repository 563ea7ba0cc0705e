"""The incremental assignment is optimal at every step, and rarely needs a full solve."""

import copy
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from moco.targets import assignment
from moco.targets.assignment import Assignment
from tests import oracle
from tests.tiny import tiny_batch, tiny_model, unit_vectors


def centroid_walk(targets: Tensor, target_share: float, steps: int, batch: int, start: str = "settled"):
    """Yield centroids (C, D) step by step: each batch moves its classes towards their noisy features.

    target_share: weight of the target in a class's mean feature; the rest is a random direction.
    """
    num_classes, dim = targets.shape
    mean = normalize(
        target_share * targets[torch.randperm(num_classes)] + (1 - target_share) * unit_vectors(num_classes, dim), dim=1
    )
    centroids = (mean if start == "settled" else unit_vectors(num_classes, dim)).clone()
    for _ in range(steps):
        y = torch.randint(num_classes, (batch,)).unique()
        feature = normalize(mean[y] + unit_vectors(len(y), dim), dim=1)
        centroids[y] = normalize(0.9 * centroids[y] + 0.1 * feature, dim=1)
        yield centroids.to(targets.dtype)


def assert_optimal(solver: Assignment, centroids: Tensor, targets: Tensor) -> None:
    column = solver.solve(centroids)
    similarity = (centroids.double() @ targets.double().T).numpy()
    row, best = linear_sum_assignment(similarity, maximize=True)
    assert sorted(column) == row.tolist()
    assert similarity[row, column].sum() == pytest.approx(similarity[row, best].sum(), abs=1e-10)


@pytest.mark.parametrize("start", ["settled", "random"])
@pytest.mark.parametrize("target_share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("num_classes", "steps", "batch"), [(2, 30, 1), (7, 100, 3), (60, 60, 4), (300, 25, 40)])
def test_assignment_is_optimal_at_every_step(num_classes, steps, batch, target_share, start):
    targets = unit_vectors(num_classes, 16).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, target_share, steps, batch, start):
        assert_optimal(solver, centroids, targets)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["settled", "random"])
@pytest.mark.parametrize("target_share", [0.0, 0.3, 0.6])
def test_assignment_of_2000_classes_is_optimal_at_every_step(target_share, start):
    targets = unit_vectors(2000, 128).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, target_share, 100, 256, start):
        assert_optimal(solver, centroids, targets)


def grouped_centroids(num_classes: int, number: int, spread: float) -> Tensor:
    """Return centroids (C, 16) around a few directions, as early in training. With spread 0 they are equal."""
    middle = unit_vectors(number, 16)[torch.randint(number, (num_classes,))]
    return normalize(middle + spread * unit_vectors(num_classes, 16), dim=1).float()


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.01, 0.3])
@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 65, 200])
def test_assignment_of_grouped_centroids_is_optimal(num_classes, number, spread):
    targets = unit_vectors(num_classes, 16).float()
    solver = Assignment(targets)
    for _ in range(3):
        assert_optimal(solver, grouped_centroids(num_classes, number, spread), targets)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4])
def test_assignment_with_ties_is_optimal(num_classes):
    """Centroids and targets along few axes have many optimal permutations."""
    axes = torch.cat([torch.eye(2), -torch.eye(2)])
    for seed in range(40):
        torch.manual_seed(seed)
        solver = Assignment(axes[:num_classes])
        for _ in range(3):
            assert_optimal(solver, axes[torch.randint(4, (num_classes,))], axes[:num_classes])


@pytest.mark.parametrize("centroids", [unit_vectors(150, 16).float, lambda: grouped_centroids(150, 3, 0.01)])
@pytest.mark.parametrize(("width", "patience"), [(2, 16), (2, 2), (1, 1)])
def test_assignment_with_short_lists_is_optimal(monkeypatch, width, patience, centroids):
    """Short lists exclude the best permutation, so classes examine more targets, and finally all."""
    monkeypatch.setattr(assignment, "WIDTH", width)
    monkeypatch.setattr(assignment, "PATIENCE", patience)
    targets = unit_vectors(150, 16).float()
    solver = Assignment(targets)
    for start in (centroids(), unit_vectors(150, 16).float()):
        for moved in range(0, 150, 30):
            current = start.clone()
            current[moved : moved + 30] = unit_vectors(30, 16).float()
            assert_optimal(solver, current, targets)
    assert width <= solver._listed.shape[1] <= 150
    assert patience > 2 or solver._listed.shape[1] > width


def test_shifted_prices_keep_the_optimality_proof(monkeypatch):
    """Adding a constant to all prices changes no assignment, and the solver lowers risen prices again."""
    monkeypatch.setattr(assignment, "WIDTH", 4)
    targets = unit_vectors(100, 16).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, 0.0, 20, 10):
        assert_optimal(solver, centroids, targets)
        assert solver._price.min() < 1
        solver._price += 3
        solver._unlisted_min += 3


def count_calls(monkeypatch, where, name: str) -> list:
    calls, function = [], getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args, **more: calls.append(args) or function(*args, **more))
    return calls


def test_settled_walk_examines_few_unmoved_classes(monkeypatch):
    price_calls = count_calls(monkeypatch, Assignment, "_compare_all_targets")
    repairs = count_calls(monkeypatch, Assignment, "_repair")
    targets = unit_vectors(300, 16).float()
    solver, moved = Assignment(targets), 0
    for centroids in centroid_walk(targets, 0.5, 100, 5):
        moved += int((centroids != solver._centroids).any(dim=1).sum())
        solver.solve(centroids)
    assert moved <= sum(len(classes) for _, classes in price_calls) < 3 * moved
    assert 0 < len(repairs) < 100


def test_solve_proves_optimality_against_all_targets():
    """Each solve proves optimality against all targets, not only against the listed ones."""
    targets = unit_vectors(200, 16).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, 0.0, 50, 20):
        solver.solve(centroids)
        priced_cost = (centroids.double() @ -targets.double().T).numpy() + solver._price
        assert (priced_cost[np.arange(200), solver._target] <= priced_cost.min(axis=1) + 2 * assignment.TOLERANCE).all()


def test_assignment_does_not_depend_on_earlier_steps():
    targets, centroids = unit_vectors(50, 8).float(), unit_vectors(50, 8).float()
    solver = Assignment(targets)
    for earlier in centroid_walk(targets, 0.0, 20, 10):
        solver.solve(earlier)
    fresh = oracle.scipy_assignment(centroids, targets)
    assert np.array_equal(solver.solve(centroids), fresh)
    assert np.array_equal(Assignment(targets).solve(centroids), fresh)


@pytest.mark.parametrize("seed", range(20))
def test_assignment_with_narrow_lists_is_optimal(seed, monkeypatch):
    """The list of an unassigned class need not contain the target that the class currently has."""
    torch.manual_seed(seed)
    monkeypatch.setattr(assignment, "WIDTH", 3)
    targets = unit_vectors(60, 16).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, 0.0, 20, 10):
        assert_optimal(solver, centroids, targets)


def test_unassigned_classes_are_rarely_examined_again(monkeypatch):
    """Only classes whose lists leave the cheapest target uncertain are examined again."""
    price_calls = count_calls(monkeypatch, Assignment, "_compare_all_targets")
    move_calls = count_calls(monkeypatch, Assignment, "_reassign")
    targets = unit_vectors(300, 16).float()
    solver, waited, repriced = Assignment(targets), 0, 0
    for centroids in centroid_walk(targets, 0.3, 30, 40):
        price_calls.clear(), move_calls.clear()
        solver.solve(centroids)
        waited += sum(len(unassigned) for _, unassigned in move_calls[1:])
        repriced += sum(len(classes) for _, classes in price_calls[1:])
    assert waited > 500 and repriced < waited / 10


def test_prices_stay_bounded_on_long_walk():
    targets = unit_vectors(20, 3).float()
    solver = Assignment(targets)
    for centroids in centroid_walk(targets, 0.0, 3000, 2):
        solver.solve(centroids)
        assert 0 <= solver._price.min() < 1 and solver._price.max() < 10


def test_non_finite_centroids_raise_once():
    targets, centroids = unit_vectors(6, 4), unit_vectors(6, 4)
    solver = Assignment(targets)
    solver.start(centroids.clone().index_fill_(0, torch.tensor([2]), torch.nan))
    with pytest.raises(FloatingPointError, match="centroid"):
        solver.result()
    solver.start(centroids)
    assert torch.equal(solver.result(), oracle.scipy_assignment(centroids, targets))


def test_second_start_waits_for_the_first(monkeypatch):
    """The second start waits, because the first still reads the centroids that it would overwrite."""
    targets, first, second = unit_vectors(40, 4), unit_vectors(40, 4), unit_vectors(40, 4)
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
    assert torch.equal(solver.result(), oracle.scipy_assignment(second, targets))
    assert torch.equal(seen[0], first) and torch.equal(seen[1], second)


def test_model_in_tsc_phase_can_be_copied():
    model = tiny_model(targeted=True, sep_t=True)
    model(*tiny_batch())
    batch = tiny_batch()
    model_copy = copy.deepcopy(model)
    assert torch.equal(model_copy(*batch).loss, model(*batch).loss)


def test_assignment_interval_keeps_the_assignment():
    """Steps 0, 3 and 6 solve the assignment; the steps in between keep it."""
    model = tiny_model(targeted=True, sep_t=True, assignment_interval=3)
    for step in range(8):
        model(*tiny_batch())
        if step % 3 == 0:
            solved = oracle.scipy_assignment(model.class_centroid, model.optimal_target)
        assert torch.equal(model.assignment, solved)
        with torch.no_grad():
            model.class_centroid.copy_(unit_vectors(3, 4))


def test_targets_loaded_from_checkpoint_are_assigned():
    model, other = tiny_model(targeted=True, sep_t=True), tiny_model()
    model(*tiny_batch())
    model.load_state_dict(other.state_dict())
    model(*tiny_batch())
    assert torch.equal(model.assignment, oracle.scipy_assignment(model.class_centroid, other.optimal_target))
