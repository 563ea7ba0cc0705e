"""Measure time and memory of the assignment of targets to classes, for several numbers of classes.

    OMP_NUM_THREADS=1 python -m benchmarks.many_classes.assignment 1000 8142 80000

Walks, floor and targets are those of bench_assignment.py. The solver's prices prove that each
assignment is optimal, because SciPy's solver would need 51 GB for 80,000 classes. 80,000 classes
take hours. Times are CPU times.
"""

import io
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_assignment import WALKS, Walk, unit_vectors
from moco.targets.assignment import Assignment
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser

HEADER = (
    "| classes | first solve | step | floor | step ÷ floor | peak memory | in a checkpoint | C × C float64 matrix |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time that one call takes, in seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def optimality_gap(solver: Assignment, centroids: Tensor, targets: Tensor) -> float:
    """Return an upper bound on the suboptimality per class: 0 proves that the assignment is optimal.

    The bound is the largest difference, at the solver's prices, between the cost of a class's assigned target and the
    cost of its cheapest target.
    """
    assignment, price, gap = torch.from_numpy(solver.solve(centroids)), torch.from_numpy(solver._price), 0.0
    if len(assignment.unique()) < len(assignment):
        raise SystemExit("the assignment is not a permutation")
    for rows in torch.arange(len(targets)).split(512):
        cost = price - centroids[rows].double() @ targets.double().T  # (rows, C)
        assigned_cost = cost.gather(1, assignment[rows, None])[:, 0]
        gap = max(gap, float((assigned_cost - cost.amin(dim=1)).max()))
    return gap


def measure(num_classes: int, walk_name: str, steps: int = 5) -> str:
    """Return a table row with time and memory for one number of classes."""
    targets = unit_vectors(num_classes)
    walk, solver = Walk(targets, WALKS[walk_name]), Assignment(targets)
    first_seconds = cpu_seconds(lambda: solver.solve(walk.centroids))
    targets_t, step_times, floor_times = targets.double().T, [], []
    for _ in range(steps):
        moved = walk.step()
        floor_times.append(cpu_seconds(lambda classes=moved: walk.centroids[classes].double() @ targets_t))
        step_times.append(cpu_seconds(lambda: solver.solve(walk.centroids)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if (gap := optimality_gap(solver, walk.centroids, targets)) > 1e-10:
        raise SystemExit(f"not the optimal assignment: a class's target costs {gap:g} more than its cheapest")
    checkpoint = io.BytesIO()
    torch.save({"class_centroid": walk.centroids, "optimal_target": targets, "assignment": solver._target}, checkpoint)
    step_ms, floor_ms = 1000 * np.mean(step_times), 1000 * np.mean(floor_times)
    return (
        f"| {num_classes:,}, {walk_name} | {first_seconds:.1f} s "
        f"| {step_ms:.0f} ms | {floor_ms:.0f} ms | {step_ms / floor_ms:.1f} "
        f"| {peak:,.0f} MiB | {checkpoint.tell() / 2**20:.1f} MiB | {8 * num_classes**2 / 2**20:,.0f} MiB |"
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
    for num_classes in sorted(args.classes):  # ascending, because the peak memory never decreases within a process
        for walk_name in args.walks:
            print(measure(num_classes, walk_name), flush=True)


if __name__ == "__main__":
    main()
