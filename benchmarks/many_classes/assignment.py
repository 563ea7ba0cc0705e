"""Measure the assignment of targets to classes for growing numbers of classes: time and memory.

    OMP_NUM_THREADS=1 python -m benchmarks.many_classes.assignment 1000 8142 80000

Walks, floor and targets are those of bench_assignment.py. Each assignment is proved optimal
from the solver's prices, as SciPy's solver would need 51 GB for 80,000 classes, which take
hours. Times are CPU times.
"""

import io
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_assignment import WALKS, Walk, unit
from moco.targets.assignment import Assignment
from utils.parser import Parser, positive_int

HEADER = (
    "| classes | first solve | step | floor | step ÷ floor | process at its peak | in a checkpoint | a C×C matrix |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def short_of_proof(solver: Assignment, centroids: Tensor, targets: Tensor) -> float:
    """Return how far the assignment is from proved optimal: 0 if every class has its cheapest target.

    This is the largest difference, at the solver's prices, between the cost of a class's target and its lowest cost.
    """
    sigma, price, short = torch.from_numpy(solver.solve(centroids)), torch.from_numpy(solver._price), 0.0
    if len(sigma.unique()) < len(sigma):
        raise SystemExit("the assignment is not a permutation")
    for rows in torch.arange(len(targets)).split(512):
        offer = price - centroids[rows].double() @ targets.double().T  # (rows, C)
        own = offer.gather(1, sigma[rows, None])[:, 0]
        short = max(short, float((own - offer.amin(dim=1)).max()))
    return short


def measure(num_classes: int, name: str, steps: int = 5) -> str:
    """Return a table row with the time and memory for one number of classes."""
    targets = unit(num_classes)
    walk, solver = Walk(targets, WALKS[name]), Assignment(targets)
    first = cpu_seconds(lambda: solver.solve(walk.centroids))
    columns, ours, floor = targets.double().T, [], []
    for _ in range(steps):
        moved = walk.step()
        floor.append(cpu_seconds(lambda y=moved: walk.centroids[y].double() @ columns))
        ours.append(cpu_seconds(lambda: solver.solve(walk.centroids)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if (short := short_of_proof(solver, walk.centroids, targets)) > 1e-10:
        raise SystemExit(f"not the optimal assignment: a class's target costs {short:g} more than its cheapest")
    saved = io.BytesIO()
    torch.save({"class_centroid": walk.centroids, "optimal_target": targets, "assignment": solver._target}, saved)
    spent, least = 1000 * np.mean(ours), 1000 * np.mean(floor)
    return (
        f"| {num_classes:,}, {name} | {first:.1f} s | {spent:.0f} ms | {least:.0f} ms | {spent / least:.1f} "
        f"| {peak:,.0f} MiB | {saved.tell() / 2**20:.1f} MiB | {8 * num_classes**2 / 2**20:,.0f} MiB |"
    )


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("classes", type=positive_int, nargs="+", metavar="C", help="Numbers of classes.")
    parser.add_argument(
        "--walks",
        nargs="+",
        choices=WALKS,
        default=list(WALKS),
        metavar="WALK",
        help="Walks of the centroids: %(choices)s (default: both).",
    )
    return parser


def main() -> None:
    args = get_args_parser().parse_args()
    torch.manual_seed(0)
    print(HEADER)
    for num_classes in sorted(args.classes):  # ascending, because the peak memory is that of the whole process
        for name in args.walks:
            print(measure(num_classes, name), flush=True)


if __name__ == "__main__":
    main()
