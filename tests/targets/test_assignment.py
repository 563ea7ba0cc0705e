"""The assignment that remembers: as good as a full solve at every step, and rarely one itself."""

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


def groups(num_classes: int, number: int, spread: float) -> Tensor:
    """Centroids (C, 16) around a few directions, as of features that have not come apart yet; 0: equal ones."""
    middle = unit(number, 16)[torch.randint(number, (num_classes,))]
    return normalize(middle + spread * unit(num_classes, 16), dim=1).float()


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.01, 0.3])
@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 65, 200])
def test_classes_that_lie_together_are_told_apart(num_classes, number, spread):
    targets = unit(num_classes, 16).float()
    solver = Assignment(targets)
    for _ in range(3):
        assert_best(solver, groups(num_classes, number, spread), targets)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4])
def test_few_classes_with_all_ties(num_classes):
    """Centroids and targets along few axes: many permutations are the best."""
    axes = torch.cat([torch.eye(2), -torch.eye(2)])
    for seed in range(40):
        torch.manual_seed(seed)
        solver = Assignment(axes[:num_classes])
        for _ in range(3):
            assert_best(solver, axes[torch.randint(4, (num_classes,))], axes[:num_classes])


@pytest.mark.parametrize("centroids", [unit(150, 16).float, lambda: groups(150, 3, 0.01)])
@pytest.mark.parametrize(("width", "patience"), [(2, 16), (2, 2), (1, 1)])
def test_lists_that_are_too_short_are_found_out(monkeypatch, width, patience, centroids):
    """The best permutation within them is not the best of all: classes look again, and at last at all targets."""
    monkeypatch.setattr(assignment, "WIDTH", width)
    monkeypatch.setattr(assignment, "PATIENCE", patience)
    targets = unit(150, 16).float()
    solver = Assignment(targets)
    for start in (centroids(), unit(150, 16).float()):
        for moved in range(0, 150, 30):
            now = start.clone()
            now[moved : moved + 30] = unit(30, 16).float()
            assert_best(solver, now, targets)
    assert width <= solver._near.shape[1] <= 150
    assert patience > 2 or solver._near.shape[1] > width


def test_prices_at_another_level_prove_the_same(monkeypatch):
    """They are lowered by an integer when they have risen, and what lists say of other targets with them."""
    monkeypatch.setattr(assignment, "WIDTH", 4)
    targets = unit(100, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.0, 20, 10):
        assert_best(solver, centroids, targets)
        assert solver._price.min() < 1
        solver._price += 3
        solver._beyond += 3


def count_calls(monkeypatch, where, name: str) -> list:
    calls, function = [], getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args, **more: calls.append(args) or function(*args, **more))
    return calls


def test_a_settled_walk_looks_at_little_more_than_what_moved(monkeypatch):
    looks = count_calls(monkeypatch, Assignment, "_look")
    repairs = count_calls(monkeypatch, Assignment, "_repair")
    targets = unit(300, 16).float()
    solver, moved = Assignment(targets), 0
    for centroids in walk(targets, 0.5, 100, 5):
        moved += int((centroids != solver._centroids).any(dim=1).sum())
        solver.solve(centroids)
    assert moved <= sum(len(classes) for _, classes in looks) < 3 * moved
    assert 0 < len(repairs) < 100


def test_what_a_step_left_in_doubt_is_settled_at_once():
    """Each solve ends with a proof against all targets, not only against those that are listed."""
    targets = unit(200, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.0, 50, 20):
        solver.solve(centroids)
        offer = (centroids.double() @ -targets.double().T).numpy() + solver._price
        assert (offer[np.arange(200), solver._target] <= offer.min(axis=1) + 2 * assignment.TOLERANCE).all()


def test_the_past_does_not_show():
    targets, centroids = unit(50, 8).float(), unit(50, 8).float()
    solver = Assignment(targets)
    for earlier in walk(targets, 0.0, 20, 10):
        solver.solve(earlier)
    fresh = oracle.full_assignment(centroids, targets)
    assert np.array_equal(solver.solve(centroids), fresh)
    assert np.array_equal(Assignment(targets).solve(centroids), fresh)


@pytest.mark.parametrize("seed", range(20))
def test_narrow_lists_along_a_contested_walk(seed, monkeypatch):
    """Classes that wait hold lists without the target that they were left with."""
    torch.manual_seed(seed)
    monkeypatch.setattr(assignment, "WIDTH", 3)
    targets = unit(60, 16).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.0, 20, 10):
        assert_best(solver, centroids, targets)


def test_classes_that_wait_are_seldom_looked_at_again(monkeypatch):
    """Only those whose lists leave them in doubt: of the others it is known which target is their cheapest."""
    looks = count_calls(monkeypatch, Assignment, "_look")
    moves = count_calls(monkeypatch, Assignment, "_move_on")
    targets = unit(300, 16).float()
    solver, waited, again = Assignment(targets), 0, 0
    for centroids in walk(targets, 0.3, 30, 40):
        looks.clear(), moves.clear()
        solver.solve(centroids)
        waited += sum(len(losers) for _, losers in moves[1:])
        again += sum(len(classes) for _, classes in looks[1:])
    assert waited > 500 and again < waited / 10


def test_prices_stay_small_on_a_long_walk():
    targets = unit(20, 3).float()
    solver = Assignment(targets)
    for centroids in walk(targets, 0.0, 3000, 2):
        solver.solve(centroids)
        assert 0 <= solver._price.min() < 1 and solver._price.max() < 10


def test_features_that_diverge_are_reported_and_forgotten():
    targets, centroids = unit(6, 4), unit(6, 4)
    solver = Assignment(targets)
    solver.start(centroids.clone().index_fill_(0, torch.tensor([2]), torch.nan))
    with pytest.raises(FloatingPointError, match="centroid"):
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
