"""Class targets for TSC: C unit vectors in R^D, spread as evenly as possible.

The release's file, optimal_1000_128.npy:
    python target_generation.py

For a data set of the registry, or any other numbers:
    python target_generation.py --dataset inat
    python target_generation.py --num-classes 10 --dim 128 --output runs/optimal_10_128.npy
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from imagenet_inat.datasets import REGISTRY
from moco.targets import check_targets, target_file_name
from utils import errors
from utils.arguments import Parser, positive_float, positive_int, seed_number
from utils.files import write_whole

TEMPERATURE = 0.07
EVALUATIONS = 320  # of the L-BFGS; where 1000 points in R^128 have all but settled


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--num-classes", type=positive_int, help="C, number of targets (default: 1000)")
    parser.add_argument("--dataset", choices=sorted(REGISTRY), help="take C from this row of the registry instead")
    parser.add_argument("--dim", type=positive_int, default=128, help="D, --moco-dim of the run that will use them")
    parser.add_argument(
        "--temperature",
        type=positive_float,
        default=TEMPERATURE,
        help="of the energy: smaller looks only at the nearest neighbours; without effect when C ≤ D + 1",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="another seed, another rotation or local optimum")
    parser.add_argument("--output", metavar="FILE", help="(default: optimal_<C>_<D>.npy here)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.dataset and args.num_classes:
        raise errors.InputError("--dataset and --num-classes: both say the number of classes, give one of them")
    num_classes = REGISTRY[args.dataset].num_classes if args.dataset else args.num_classes or 1000
    output = Path(args.output or target_file_name(num_classes, args.dim))
    if output.is_dir() or not output.parent.is_dir():
        raise errors.InputError(f"--output {output}: expected the name of a file in a folder that is there")
    generate_file(output, num_classes, args.dim, args.temperature, args.seed)


def generate_file(output: Path, num_classes: int, dim: int, temperature: float = TEMPERATURE, seed: int = 0) -> Tensor:
    """Make targets, write them as float32 (C, D) .npy and say how good they are."""
    with tqdm(total=EVALUATIONS, desc=f"targets {num_classes}×{dim}", unit="eval", leave=False, disable=None) as bar:
        targets = generate(num_classes, dim, temperature, seed, lambda energy: _advance(bar, energy))
    check_targets(targets, num_classes, dim)
    write_whole(output, lambda file: np.save(file, targets.numpy()))
    print(
        f"wrote {output}: {num_classes} targets in R^{dim}, energy ratio {energy_ratio(targets):.4f}",
        flush=True,
    )
    return targets


def generate(
    num_classes: int,
    dim: int,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    on_evaluation: Callable[[float], None] = lambda energy: None,
) -> Tensor:
    """C unit vectors in R^D spread as evenly as possible, (C, D) float32.

    C ≤ D + 1: the regular simplex, which is optimal, rotated at random by the seed.
    More: a local minimum of the energy L_u without its constant self term.
    """
    rng = torch.Generator().manual_seed(seed)
    if num_classes <= dim + 1:
        return regular_simplex(num_classes, dim, rng).float()
    start = normalize(torch.randn(num_classes, dim, generator=rng), dim=1)
    return spread(start, temperature, on_evaluation)


def regular_simplex(num_classes: int, dim: int, rng: torch.Generator) -> Tensor:
    """C ≤ D + 1 unit vectors with all cosines −1/(C−1), (C, D) float64, in a random orientation.

    Raises:
        ValueError: C > D + 1, for which there is none.
    """
    if num_classes > dim + 1:
        raise ValueError(f"no regular simplex of {num_classes} points in R^{dim}: at most {dim + 1}")
    if num_classes == 1:
        return normalize(torch.randn(1, dim, generator=rng, dtype=torch.float64), dim=1)
    corners = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes  # in the plane of sum 0
    plane = torch.linalg.svd(corners).Vh[: num_classes - 1]  # (C−1, C) a basis of that plane
    rotation, _ = torch.linalg.qr(torch.randn(dim, num_classes - 1, generator=rng, dtype=torch.float64))
    return normalize(corners @ plane.T @ rotation.T, dim=1)


def energy(points: Tensor, temperature: float) -> Tensor:
    """Mean over i of log of the mean over j≠i of exp(t_i·t_j / temperature), for (C, D) unit rows.

    L_u of the paper (equation 3) without its self term exp(1/τ), which is constant on
    the sphere and so large that a float32 sum hides the rest behind it.
    """
    logits = points @ points.T / temperature  # (C, C)
    logits = logits.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), -torch.inf)
    return logits.logsumexp(dim=1).mean() - np.log(len(points) - 1)


def energy_ratio(points: Tensor, temperature: float = TEMPERATURE) -> float:
    """Mean over ordered pairs i≠j of exp(t_i·t_j / temperature) in float64; 1 = all orthogonal."""
    if len(points) < 2:
        return float("nan")
    points = points.double()
    return float((points @ points.T / temperature).exp().fill_diagonal_(0).sum() / (len(points) * (len(points) - 1)))


def spread(start: Tensor, temperature: float, on_evaluation: Callable[[float], None]) -> Tensor:
    """Minimise the energy from `start` (C, D) with L-BFGS over unnormalised rows; returns unit rows."""
    points = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [points], max_iter=EVALUATIONS, max_eval=EVALUATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = energy(normalize(points, dim=1), temperature)
        value.backward()
        on_evaluation(value.item())
        return value

    optimizer.step(evaluate)
    return normalize(points.detach(), dim=1)


def _advance(bar: tqdm, value: float) -> None:
    bar.set_postfix_str(f"log energy {value:.4f}", refresh=False)
    bar.update()


if __name__ == "__main__":
    errors.run(main, "no file was written")
