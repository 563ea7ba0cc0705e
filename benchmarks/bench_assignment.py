"""The assignment of targets to classes along a walk of centroids, exact at every step.

Each step moves the centroids of a long-tailed batch of 256, c <- normalise(0.9 c + 0.1 feature).
Settled: features keep near their class's target; contested: classes lie so far from targets that
the best permutation changes at every step. The floor is the matrix product of the moved centroids
and the targets in float64; the textbook version is SciPy's full solve. Targets are random
unit vectors in R^128. Times are means over the walk, for a repair is rare and must be paid for.

    python -m benchmarks.bench_assignment cpu 1000 8142 80000

tells for other numbers of classes, the least first, how time and memory grow. There the proof is
read against all targets in place of SciPy's solve, which would take 51 GB for 80,000 classes.
"""

import io
import resource
import sys
import time

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from moco.targets.assignment import Assignment

D, BATCH, CHECKS = 128, 256, 3
WALKS = {"settled": 0.5, "contested": 0.3}  # how much of a class's mean feature is its target


def unit(rows: int) -> Tensor:
    return normalize(torch.randn(rows, D), dim=1)


class Walk:
    """Class means and centroids (C, D), and the batches that move them."""

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
    """Seconds of SciPy's solve without the product, and the sum it reaches."""
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
        raise SystemExit(f"not the best assignment: {short:g} below SciPy's sum")
    notes = (
        f"{steps} steps, median {1000 * np.median(ours):.1f} ms, worst {1000 * max(ours):.0f} ms; "
        f"first solve {first:.1f} s; sum within {max(short, 0):.0e} of SciPy's"
    )
    means = [[float(np.mean(times))] for times in (ours, floor, full)]
    return common.row(f"assignment, C = {num_classes}, {name}", *means, notes)


def short_of_proof(solver: Assignment, centroids: Tensor, targets: Tensor) -> float:
    """By how much a class's target is dearer than its cheapest at the solver's prices, at most; 0: the best."""
    sigma, price, short = torch.from_numpy(solver.solve(centroids)), torch.from_numpy(solver._price), 0.0
    if len(sigma.unique()) < len(sigma):
        raise SystemExit("not a permutation")
    for rows in torch.arange(len(targets)).split(512):
        offer = price - centroids[rows].double() @ targets.double().T  # (rows, C)
        own = offer.gather(1, sigma[rows, None])[:, 0]
        short = max(short, float((own - offer.amin(dim=1)).max()))
    return short


def growth(num_classes: int, name: str, steps: int = 5) -> str:
    """A row of what one number of classes takes."""
    targets = unit(num_classes)
    walk, solver = Walk(targets, WALKS[name]), Assignment(targets)
    start = time.perf_counter()
    solver.solve(walk.centroids)
    first = time.perf_counter() - start
    columns, ours, floor = targets.double().T, [], []
    for _ in range(steps):
        moved = walk.step()
        floor.append(common.seconds(lambda y=moved: walk.centroids[y].double() @ columns, torch.device("cpu")))
        ours.append(common.seconds(lambda: solver.solve(walk.centroids), torch.device("cpu")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if (short := short_of_proof(solver, walk.centroids, targets)) > 1e-10:
        raise SystemExit(f"not the best assignment: a class's target is {short:g} dearer than its cheapest")
    saved = io.BytesIO()
    torch.save({"class_centroid": walk.centroids, "optimal_target": targets, "assignment": solver._target}, saved)
    spent, least = 1000 * np.mean(ours), 1000 * np.mean(floor)
    return (
        f"| {num_classes:,}, {name} | {first:.1f} s | {spent:.0f} ms | {least:.0f} ms | {spent / least:.1f} "
        f"| {peak:,.0f} MiB | {saved.tell() / 2**20:.1f} MiB | {8 * num_classes**2 / 2**20:,.0f} MiB |"
    )


GROWTH_HEADER = (
    "| classes | first solve | step | floor | step ÷ floor | process at its peak | in a checkpoint | a C×C matrix |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    torch.manual_seed(0)
    if sizes := sys.argv[2:]:
        print(GROWTH_HEADER)
        for num_classes in sorted(map(int, sizes)):
            for name in WALKS:
                print(growth(num_classes, name), flush=True)
        return
    print(common.HEADER)
    for num_classes, name, steps in [(1000, "settled", 200), (1000, "contested", 60), (8142, "settled", 60)]:
        print(measure(num_classes, name, steps), flush=True)
    print(measure(8142, "contested", 9), flush=True)


if __name__ == "__main__":
    main()
