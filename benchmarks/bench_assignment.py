"""Measure the assignment of targets to classes while the centroids move. It is exact at every step.

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

D, BATCH, CHECKS = 128, 256, 3
WALKS = {"settled": 0.5, "contested": 0.3}  # weight of the target in a class's mean feature


def unit(rows: int) -> Tensor:
    return normalize(torch.randn(rows, D), dim=1)


class Walk:
    """Class means and centroids, (C, D), moved by random batches."""

    def __init__(self, targets: Tensor, nearness: float):
        self.mean = normalize(nearness * targets + (1 - nearness) * unit(len(targets)), dim=1)
        self.weight = torch.arange(1, len(targets) + 1).float() ** -0.7
        self.centroids = self.mean.clone()
        for _ in range(30):  # settle
            self.move(torch.arange(len(targets)))

    def move(self, y: Tensor) -> None:
        feature = normalize(self.mean[y] + unit(len(y)), dim=1)
        self.centroids[y] = normalize(0.9 * self.centroids[y] + 0.1 * feature, dim=1)

    def step(self) -> Tensor:
        moved = torch.multinomial(self.weight, BATCH, replacement=True).unique()
        self.move(moved)
        return moved


def full_solve(centroids: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the seconds of SciPy's solver, without the matrix product, and its optimal sum."""
    similarity = (centroids.double() @ targets.double().T).numpy()
    start = time.perf_counter()
    row, column = linear_sum_assignment(similarity, maximize=True)
    return time.perf_counter() - start, similarity[row, column].sum()


def measure(num_classes: int, name: str, steps: int) -> str:
    targets = unit(num_classes)
    walk, solver = Walk(targets, WALKS[name]), Assignment(targets)
    start = time.perf_counter()
    solver.solve(walk.centroids)
    first = time.perf_counter() - start
    columns, ours, floor, full, short = targets.double().T, [], [], [], 0.0
    for step in range(steps):
        moved = walk.step()
        floor.append(common.seconds(lambda y=moved: walk.centroids[y].double() @ columns, torch.device("cpu")))
        start = time.perf_counter()
        column = torch.from_numpy(solver.solve(walk.centroids))
        ours.append(time.perf_counter() - start)
        if step % (steps // CHECKS) == 0:
            spent, best = full_solve(walk.centroids, targets)
            full.append(spent)
            short = max(short, best - (walk.centroids.double() * targets[column].double()).sum().item())
    if short > 1e-9:
        raise SystemExit(f"not the optimal assignment: {short:g} below SciPy's sum")
    notes = (
        f"{steps} steps, median {1000 * np.median(ours):.1f} ms, worst {1000 * max(ours):.0f} ms; "
        f"first solve {first:.1f} s; sum within {max(short, 0):.0e} of SciPy's"
    )
    means = [[float(np.mean(times))] for times in (ours, floor, full)]
    return common.row(f"assignment, C = {num_classes}, {name}", *means, notes)


def main() -> None:
    torch.manual_seed(0)
    print(common.HEADER)
    for num_classes, name, steps in [(1000, "settled", 200), (1000, "contested", 60), (8142, "settled", 60)]:
        print(measure(num_classes, name, steps), flush=True)
    print(measure(8142, "contested", 9), flush=True)


if __name__ == "__main__":
    main()
