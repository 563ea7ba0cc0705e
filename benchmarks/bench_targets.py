"""Time the creation of 1000 targets in R^128, with the authors' recipe and with ours.

    python -m benchmarks.bench_targets

The authors' recipe is 10,000 steps of Adam on L_u: --steps of them are timed, in turns with
ours, and extrapolated; its final energy ratio is known, not measured. Ours, L-BFGS, is timed
from a random start and from the start that the program uses. The output is Markdown; the
ratios matter, as times depend on the machine. It takes about 20 s on two free cores.
"""

import os
import time
from functools import partial
from statistics import median

import torch

from moco.targets import spread
from moco.targets.certificate import energy_bound, measures
from moco.targets.generation import TEMPERATURE, starts
from moco.targets.point_sets import random_points
from utils.parser import Parser, positive_int

NUM_CLASSES, DIM = 1000, 128
LEVELS = (1.563, 1.521)  # energy ratios: the result of the authors' recipe, and the goal
EVALUATIONS = 400  # for L-BFGS; the random start passes the second level after about 350


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "device", nargs="?", choices=["cpu", "cuda"], default="cpu", help="Device on which both are timed: %(choices)s."
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=3, metavar="N", help="Number of turns, of which the median is used."
    )
    parser.add_argument("--steps", type=positive_int, default=60, metavar="N", help="Adam steps per turn.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    bound = energy_bound(NUM_CLASSES, DIM, TEMPERATURE)
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"{NUM_CLASSES} × {DIM}, {torch.get_num_threads()} threads{load}; lower bound {bound:.4f}\n")
    textbook(10, args.device)  # warm-up: starts threads and fills caches
    steps, random, symmetric = [], [], []
    for seed in range(args.repeats):
        steps.append(textbook(args.steps, args.device))
        random.append(search(partial(random_points, NUM_CLASSES, DIM), seed, args.device))
        symmetric.append(search(first_start, seed, args.device))
    release = median(steps) * spread.RELEASE_STEPS
    print(f"| targets {NUM_CLASSES} × {DIM} | energy ratio | seconds | release ÷ ours |\n|---|--:|--:|--:|")
    print(f"| the release's {spread.RELEASE_STEPS} Adam steps, extrapolated | 1.563 (known) | {release:.1f} | 1 |")
    for name, runs in (("random start", random), ("symmetric start", symmetric)):
        for level in LEVELS:
            seconds = median(run["reached"][level] for run in runs)
            print(f"| ours, {name}, until | {level} | {seconds:.2f} | {release / seconds:.0f} |")
        ratio, seconds = median(run["ratio"] for run in runs), median(run["seconds"] for run in runs)
        print(f"| ours, {name}, {EVALUATIONS} evaluations | {ratio:.4f} | {seconds:.2f} | {release / seconds:.0f} |")


def first_start(rng: torch.Generator) -> torch.Tensor:
    """Return the starting point that target_generation.py uses."""
    return next(starts(NUM_CLASSES, DIM, 1, "lbfgs", rng))


def textbook(steps: int, device: str) -> float:
    """Return the seconds per step of Adam on L_u, including its self term (the authors' recipe)."""
    start = next(starts(NUM_CLASSES, DIM, 1, "adam", torch.Generator().manual_seed(0)))
    raw = torch.nn.Parameter(start.to(device))
    optimizer = torch.optim.Adam([raw], lr=spread.RELEASE_LR)
    begin = time.perf_counter()
    for _ in range(steps):
        points = torch.nn.functional.normalize(raw, dim=1)
        loss = torch.logsumexp(points @ points.T / TEMPERATURE, dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss.item()  # waits for the device
    return (time.perf_counter() - begin) / steps


def search(make_start, seed: int, device: str) -> dict:
    """Return the seconds of an L-BFGS search, in total and until each level, and its final energy ratio."""
    best, reached = spread.Best(), dict.fromkeys(LEVELS, float("nan"))
    begin = time.perf_counter()

    def watch(energy: float) -> None:
        for level, when in reached.items():
            if when != when and energy <= torch.tensor(level).log():
                reached[level] = time.perf_counter() - begin

    start = make_start(torch.Generator().manual_seed(seed)).to(device)
    spread.lbfgs(start, TEMPERATURE, EVALUATIONS, best, watch)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "reached": reached,
        "ratio": measures(best.points.double().cpu().numpy(), TEMPERATURE)["energy_ratio"],
    }


if __name__ == "__main__":
    main()
