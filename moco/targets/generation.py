"""Generate a target set: a regular simplex if it exists, or the best result of several searches."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from moco.targets import optimize
from moco.targets.bounds import format_energy, format_gap, target_quality
from moco.targets.defaults import EVALUATIONS, RELEASE_STEPS, TEMPERATURE
from moco.targets.files import check_size, check_targets
from moco.targets.point_sets import fitting_quadric, quadric_start, random_points, regular_simplex
from utils.errors import EXIT_CODES, interrupting_signal, print_stderr
from utils.files import unused_name, write_atomically

LINE_SECONDS = 30  # between progress lines


def generate_file(
    output: Path, num_classes: int, dim: int, temperature: float = TEMPERATURE, keep_interrupted: bool = False, **search
) -> Tensor:
    """Generate targets with `generate`, write them to a .npy file as float32 (C, D), and print a line about them.

    keep_interrupted: on Ctrl-C, save the best set found so far and exit with code 130.
    """
    best = optimize.BestPoints()
    try:
        targets = generate(num_classes, dim, temperature, best=best, **search)
    except KeyboardInterrupt as error:
        if best.points is None or not keep_interrupted:
            raise
        path = output
        if output.exists():  # the existing file may be better than an unfinished search
            path = unused_name(lambda n: output.with_suffix(".interrupted.npy" if n == 1 else f".interrupted-{n}.npy"))
        save(path, best.points)
        print_stderr(f"\ninterrupted: saved the best set so far to {path}, {format_targets(best.points, temperature)}")
        sys.exit(EXIT_CODES[interrupting_signal(error)])
    save(output, targets)
    print_stderr(f"wrote {output}: {format_targets(targets, temperature)}")
    return targets


def save(output: Path, targets: Tensor) -> None:
    check_targets(targets, *targets.shape)
    write_atomically(output, lambda file: np.save(file, targets.cpu().numpy()))


def format_targets(targets: Tensor, temperature: float) -> str:
    """Format size, energy ratio and distance from the bound in one short phrase."""
    if len(targets) < 2:
        return f"{len(targets)} targets in R^{targets.shape[1]}"
    quality = target_quality(targets.cpu().numpy(), temperature)
    return f"{format_energy(quality)}, {format_gap(quality)}"


def generate(
    num_classes: int,
    dim: int,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    *,
    iters: int | None = None,
    restarts: int = 1,
    optimizer: str = "lbfgs",
    device: torch.device | str = "cpu",
    best: optimize.BestPoints | None = None,
) -> Tensor:
    """Return C unit vectors in R^D that are spread as evenly as possible, (C, D) float32 on the CPU.

    With "lbfgs" and C ≤ D + 1, the result is the regular simplex, which is optimal, in a random orientation given by
    the seed. Otherwise it is the best set found over all starts: "lbfgs" minimises the energy without its constant self
    term, "adam" minimises L_u with it.

    Args:
        iters: number of evaluations of energy and gradient per start.
        optimizer: "lbfgs", or "adam", the recipe of the code released by the TSC authors, which starts from normal
            random vectors for any C.
        best: is updated with the best set found so far, for use after an interrupt.

    Raises:
        InputError: There are no num_classes different unit vectors in this dimension.
    """
    check_size(num_classes, dim)
    rng = torch.Generator().manual_seed(seed)
    if num_classes == 1 or (num_classes <= dim + 1 and optimizer == "lbfgs"):
        return regular_simplex(num_classes, dim, rng).float()
    search = getattr(optimize, optimizer)
    iters = iters or (EVALUATIONS if optimizer == "lbfgs" else RELEASE_STEPS)
    best = best or optimize.BestPoints()
    title, steps = f"targets {num_classes}×{dim}", optimize.ADAM_REPORT_STEPS if optimizer == "adam" else 1
    progress = SearchProgress(title, iters * restarts)
    with progress.bar:
        for number, start in enumerate(starting_points(num_classes, dim, restarts, optimizer, rng)):
            search(start.to(device), temperature, iters, best, lambda log_energy: progress.advance(log_energy, steps))
            progress.done = (number + 1) * iters  # the search may have converged earlier
    return best.points.cpu()


def starting_points(num_classes: int, dim: int, count: int, optimizer: str, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield starting points for the search, (C, D) float32 each.

    L-BFGS starts near an elliptic quadric if one fits, then from random unit rows. Adam starts from normal vectors of
    norm about √D, as in the authors' code; the norm matters, because the step length of Adam does not depend on it.
    """
    q = fitting_quadric(num_classes, dim)
    for i in range(count):
        if optimizer == "adam":
            yield torch.randn(num_classes, dim, generator=rng)
        elif i == 0 and q is not None:
            yield quadric_start(num_classes, dim, q, rng)
        else:
            yield random_points(num_classes, dim, rng)


class SearchProgress:
    """A progress bar on a terminal. If the output is a file, a line every LINE_SECONDS.

    Args:
        title: what is searched for. total: number of energy evaluations.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done = title, total, 0
        self.printed = time.monotonic()
        self.bar = tqdm(total=total, desc=title, unit="eval", leave=False, disable=None)  # None: only on a terminal

    def advance(self, log_energy: float, evaluations: int) -> None:
        """Count energy evaluations, and show the energy."""
        self.done = min(self.done + evaluations, self.total)
        energy = f"energy ratio {np.exp(log_energy):.4f}"
        self.bar.set_postfix_str(energy, refresh=False)
        self.bar.update(self.done - self.bar.n)
        if self.bar.disable and time.monotonic() - self.printed >= LINE_SECONDS:
            self.printed = time.monotonic()
            print_stderr(f"{self.title}: {self.done} of at most {self.total} evaluations, {energy}")
