"""Measure the assignment of targets to classes while the centroids move. The assignment is optimal at every step.

Each step moves the centroids of a long-tailed batch of 256: c <- normalise(0.9 c + 0.1 feature).
In the walk "settled", features stay near their class's target. In "contested", classes are so far
from the targets that the best permutation changes at every step. The floor is the matrix product
of the moved centroids and the targets in float64. The textbook version is SciPy's full solve.
Targets are random unit vectors in R^128. Times are means over the walk, so that rare expensive
steps are included. `python -m benchmarks.many_classes.assignment` measures more classes.
"""

import time

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from moco.targets.assignment import Assignment

DIM, BATCH, CHECKS = 128, 256, 3
WALKS = {"settled": 0.5, "contested": 0.3}  # weight of the target in a class's mean feature


def unit_vectors(count: int) -> Tensor:
    return normalize(torch.randn(count, DIM), dim=1)


class Walk:
    """Class means and centroids, both (C, D). Random batches move the centroids."""

    def __init__(self, targets: Tensor, target_weight: float):
        self.class_means = normalize(target_weight * targets + (1 - target_weight) * unit_vectors(len(targets)), dim=1)
        self.class_weights = torch.arange(1, len(targets) + 1).float() ** -0.7
        self.centroids = self.class_means.clone()
        for _ in range(30):  # let the centroids reach their stationary distribution
            self.move_centroids(torch.arange(len(targets)))

    def move_centroids(self, classes: Tensor) -> None:
        feature = normalize(self.class_means[classes] + unit_vectors(len(classes)), dim=1)
        self.centroids[classes] = normalize(0.9 * self.centroids[classes] + 0.1 * feature, dim=1)

    def step(self) -> Tensor:
        """Move the centroids of a random batch. Return its classes."""
        moved = torch.multinomial(self.class_weights, BATCH, replacement=True).unique()
        self.move_centroids(moved)
        return moved


def full_solve(centroids: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the seconds of SciPy's solver, without the matrix product, and its optimal sum of similarities."""
    similarity = (centroids.double() @ targets.double().T).numpy()
    start = time.perf_counter()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return time.perf_counter() - start, similarity[rows, columns].sum()


def measure(num_classes: int, walk_name: str, steps: int) -> str:
    """Return a table row for one walk. Check the assignment against SciPy in CHECKS of the steps."""
    targets = unit_vectors(num_classes)
    walk, solver = Walk(targets, WALKS[walk_name]), Assignment(targets)
    start = time.perf_counter()
    solver.solve(walk.centroids)
    first_seconds = time.perf_counter() - start
    targets_t, solve_times, floor_times, scipy_times, shortfall = targets.double().T, [], [], [], 0.0
    for step in range(steps):
        moved = walk.step()
        floor_times.append(
            common.time_call(lambda classes=moved: walk.centroids[classes].double() @ targets_t, torch.device("cpu"))
        )
        start = time.perf_counter()
        assignment = torch.from_numpy(solver.solve(walk.centroids))
        solve_times.append(time.perf_counter() - start)
        if step % (steps // CHECKS) == 0:
            elapsed, best_sum = full_solve(walk.centroids, targets)
            scipy_times.append(elapsed)
            shortfall = max(shortfall, best_sum - (walk.centroids.double() * targets[assignment].double()).sum().item())
    if shortfall > 1e-9:
        raise SystemExit(f"not the optimal assignment: {shortfall:g} below SciPy's sum")
    notes = (
        f"{steps} steps, median {1000 * np.median(solve_times):.1f} ms, worst {1000 * max(solve_times):.0f} ms; "
        f"first solve {first_seconds:.1f} s; sum within {max(shortfall, 0):.0e} of SciPy's"
    )
    means = [[float(np.mean(times))] for times in (solve_times, floor_times, scipy_times)]
    return common.row(f"assignment, C = {num_classes}, {walk_name}", *means, notes)


def main() -> None:
    torch.manual_seed(0)
    print(common.HEADER)
    for num_classes, walk_name, steps in [(1000, "settled", 200), (1000, "contested", 60), (8142, "settled", 60)]:
        print(measure(num_classes, walk_name, steps), flush=True)
    print(measure(8142, "contested", 9), flush=True)


if __name__ == "__main__":
    main()
