"""Time the optimisation of 1000 targets in R^128: the authors' code compared with ours.

    python -m benchmarks.bench_targets

The authors' code (the code released by the TSC authors) takes 10,000 steps of Adam on L_u. The
benchmark times --steps of them, in turns with ours, and extrapolates. Their final energy ratio
is known, not measured. Ours, L-BFGS, is timed from a random start and from the start that
target_generation.py uses. The output is Markdown. Times depend on the machine; compare the
ratios. The benchmark takes about 20 s on two free cores.
"""

import os
import time
from functools import partial
from statistics import median

import torch

from moco.targets import optimize
from moco.targets.bounds import energy_bound, target_measures
from moco.targets.defaults import RELEASE_STEPS, TEMPERATURE
from moco.targets.generation import starting_points
from moco.targets.point_sets import random_points
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser

NUM_CLASSES, DIM = 1000, 128
LEVELS = (1.563, 1.521)  # energy ratios: the result of the authors' code, and the goal
EVALUATIONS = 400  # for L-BFGS; the random start passes the second level after about 350


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "device", nargs="?", choices=["cpu", "cuda"], default="cpu", help="Device for the measurements: %(choices)s."
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        metavar="N",
        help="Number of turns. The table shows medians over them.",
    )
    parser.add_argument("--steps", type=positive_int, default=60, metavar="N", help="Adam steps per turn.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    bound = energy_bound(NUM_CLASSES, DIM, TEMPERATURE)
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"{NUM_CLASSES} × {DIM}, {torch.get_num_threads()} threads{load}; lower bound {bound:.4f}\n")
    time_adam(10, args.device)  # warm-up, which starts threads and fills caches
    step_seconds, random, symmetric = [], [], []
    for seed in range(args.repeats):
        step_seconds.append(time_adam(args.steps, args.device))
        random.append(time_lbfgs(partial(random_points, NUM_CLASSES, DIM), seed, args.device))
        symmetric.append(time_lbfgs(default_start, seed, args.device))
    authors_seconds = median(step_seconds) * RELEASE_STEPS
    print(f"| targets {NUM_CLASSES} × {DIM} | energy ratio | seconds | authors' ÷ ours |\n|---|--:|--:|--:|")
    adam = f"authors' code, {RELEASE_STEPS} Adam steps, extrapolated"
    print(f"| {adam} | 1.563 (known) | {authors_seconds:.1f} | 1 |")
    for name, runs in (("random start", random), ("symmetric start", symmetric)):
        for level in LEVELS:
            seconds = median(run["reached"][level] for run in runs)
            print(f"| ours, {name}, time to reach | {level} | {seconds:.2f} | {authors_seconds / seconds:.0f} |")
        ratio, seconds = median(run["ratio"] for run in runs), median(run["seconds"] for run in runs)
        label = f"ours, {name}, {EVALUATIONS} evaluations"
        print(f"| {label} | {ratio:.4f} | {seconds:.2f} | {authors_seconds / seconds:.0f} |")


def default_start(rng: torch.Generator) -> torch.Tensor:
    """Return the start that target_generation.py uses, (NUM_CLASSES, DIM)."""
    return next(starting_points(NUM_CLASSES, DIM, 1, "lbfgs", rng))


def time_adam(steps: int, device: str) -> float:
    """Return the seconds per step of Adam on L_u, with its self term, as in the authors' code."""
    start = next(starting_points(NUM_CLASSES, DIM, 1, "adam", torch.Generator().manual_seed(0)))
    raw = torch.nn.Parameter(start.to(device))
    optimizer = torch.optim.Adam([raw], lr=optimize.RELEASE_LR)
    start_time = time.perf_counter()
    for _ in range(steps):
        points = torch.nn.functional.normalize(raw, dim=1)
        loss = torch.logsumexp(points @ points.T / TEMPERATURE, dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss.item()  # waits for the device
    return (time.perf_counter() - start_time) / steps


def time_lbfgs(make_start, seed: int, device: str) -> dict:
    """Run L-BFGS once. Return its total `seconds`, the seconds until each level is `reached`, and its final `ratio`."""
    best, seconds_to_level = optimize.BestPoints(), dict.fromkeys(LEVELS, float("nan"))
    start_time = time.perf_counter()

    def record_levels(energy: float) -> None:
        for level, reached_at in seconds_to_level.items():
            if reached_at != reached_at and energy <= torch.tensor(level).log():
                seconds_to_level[level] = time.perf_counter() - start_time

    start = make_start(torch.Generator().manual_seed(seed)).to(device)
    optimize.lbfgs(start, TEMPERATURE, EVALUATIONS, best, record_levels)
    seconds = time.perf_counter() - start_time
    return {
        "seconds": seconds,
        "reached": seconds_to_level,
        "ratio": target_measures(best.points.double().cpu().numpy(), TEMPERATURE)["energy_ratio"],
    }


if __name__ == "__main__":
    main()
