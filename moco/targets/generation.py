"""Making a target set: the simplex where one fits, else the best of searches from several starts."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from moco.targets import spread
from moco.targets.certificate import certificate, energy_of, verdict
from moco.targets.files import check_size, check_targets
from moco.targets.point_sets import fitting_quadric, quadric_start, random_points, regular_simplex
from utils.errors import tell
from utils.files import first_free, write_whole

TEMPERATURE = 0.07
DIM = 128
EVALUATIONS = 600  # of the L-BFGS; where 1000 points in R^128 have all but settled


def generate_file(
    output: Path, num_classes: int, dim: int, temperature: float = TEMPERATURE, keep_interrupted: bool = False, **search
) -> Tensor:
    """Make targets by `generate` and write them as float32 (C, D) .npy, in a line that says so.

    keep_interrupted: on Ctrl-C save the best set so far, and leave with exit code 130.
    """
    check_size(num_classes, dim)
    best = spread.Best()
    try:
        targets = generate(num_classes, dim, temperature, best=best, **search)
    except KeyboardInterrupt:
        if best.points is None or not keep_interrupted:
            raise
        place = output
        if output.exists():  # and may be better than half a search
            place = first_free(lambda n: output.with_suffix(".interrupted.npy" if n == 1 else f".interrupted-{n}.npy"))
        save(place, best.points)
        tell(f"\ninterrupted: the best set so far is in {place}, {brief(best.points, temperature)}")
        sys.exit(130)
    save(output, targets)
    tell(f"wrote {output}: {brief(targets, temperature)}")
    return targets


def save(output: Path, targets: Tensor) -> None:
    check_targets(targets, *targets.shape)
    write_whole(output, lambda file: np.save(file, targets.cpu().numpy()))


def brief(targets: Tensor, temperature: float) -> str:
    """The certificate in half a line."""
    if len(targets) < 2:
        return f"{len(targets)} targets in R^{targets.shape[1]}"
    facts = certificate(targets.cpu().numpy(), temperature)
    return f"{energy_of(facts)}, {verdict(facts)}"


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
    best: spread.Best | None = None,
) -> Tensor:
    """C unit vectors in R^D spread as evenly as possible, (C, D) float32 on the CPU.

    C ≤ D + 1: the regular simplex, which is optimal, rotated at random by the seed.
    More: a local minimum of the energy L_u without its constant self term, the best from all starts.

    Args:
        iters: evaluations of energy and gradient from each start.
        optimizer: "lbfgs", or "adam": the release's recipe from normal random vectors, for any C.
        best: holds the best set at every moment, for who interrupts.
    """
    rng = torch.Generator().manual_seed(seed)
    if num_classes == 1 or (num_classes <= dim + 1 and optimizer == "lbfgs"):
        return regular_simplex(num_classes, dim, rng).float()
    search = getattr(spread, optimizer)
    iters = iters or (EVALUATIONS if optimizer == "lbfgs" else spread.RELEASE_STEPS)
    best = best or spread.Best()
    title = f"targets {num_classes}×{dim}"
    with tqdm(total=iters * restarts, desc=title, unit="eval", leave=False, disable=None) as bar:
        for number, start in enumerate(starts(num_classes, dim, restarts, optimizer, rng)):
            search(start.to(device), temperature, iters, best, lambda energy: advance(bar, energy))
            bar.update((number + 1) * iters - bar.n)  # it may have settled earlier
    return best.points.cpu()


def starts(num_classes: int, dim: int, number: int, optimizer: str, rng: torch.Generator) -> Iterator[Tensor]:
    """Where to search from, (C, D) float32 each.

    L-BFGS: around an elliptic quadric where one fits, then at random, unit rows. Adam, whose steps are of one length
    whatever the vector's: normal vectors, of norm about √D, as the release.
    """
    q = fitting_quadric(num_classes, dim)
    for i in range(number):
        if optimizer == "adam":
            yield torch.randn(num_classes, dim, generator=rng)
        elif i == 0 and q is not None:
            yield quadric_start(num_classes, dim, q, rng)
        else:
            yield random_points(num_classes, dim, rng)


def advance(bar: tqdm, energy: float) -> None:
    bar.set_postfix_str(f"energy ratio {np.exp(energy):.4f}", refresh=False)
    bar.update()
