"""Class targets for TSC: C unit vectors in R^D, spread as evenly as possible.

The release's file, optimal_1000_128.npy:
    python target_generation.py

For a data set of the registry, or any other numbers:
    python target_generation.py --dataset inat
    python target_generation.py --num-classes 10 --dim 128 --output runs/optimal_10_128.npy

How good is a file? How far from the best possible, and what do its cosines look like?
    python target_generation.py --check optimal_1000_128.npy --plot targets.png
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagenet_inat.datasets import REGISTRY
from moco.targets import check_targets, read_targets, target_file_name
from utils import errors, spread
from utils.arguments import Parser, positive_int, seed_number
from utils.certificate import as_text, certificate
from utils.files import check_regular, first_free, json_text, write_whole
from utils.point_sets import fitting_quadric, quadric_start, random_points, regular_simplex
from utils.resolve import pick_device

TEMPERATURE = 0.07
DIM = 128
EVALUATIONS = 600  # of the L-BFGS; where 1000 points in R^128 have all but settled


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--num-classes", type=positive_int, help="C, number of targets (default: 1000)")
    parser.add_argument("--dataset", choices=sorted(REGISTRY), help="take C from this row of the registry instead")
    parser.add_argument(
        "--dim", type=positive_int, help=f"D, --moco-dim of the run that will use them (default: {DIM})"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=TEMPERATURE,
        help="of the energy: smaller looks only at the nearest neighbours; the points do not depend on it when "
        "C ≤ D + 1; 0.05 to 0.2 is usual",
    )
    parser.add_argument("--output", metavar="FILE", help="(default: optimal_<C>_<D>.npy here)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of --output and --plot if they exist"
    )
    add_search_arguments(parser.add_argument_group("Search", "without effect when C ≤ D + 1, but for the seed"))
    add_report_arguments(parser.add_argument_group("Report"))
    return parser


def add_search_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=seed_number, default=0, help="another seed, another rotation or local optimum")
    group.add_argument(
        "--optimizer",
        choices=["lbfgs", "adam"],
        default="lbfgs",
        help="adam: the release's recipe, to compare with: from normal random vectors, on L_u with its self term, "
        "whatever C; the set of least loss is kept",
    )
    group.add_argument(
        "--iters",
        type=positive_int,
        help="evaluations of the energy and its gradient from each start; more gain little, L-BFGS stops where "
        f"float32 ends (default: {EVALUATIONS}; adam: the release's {spread.RELEASE_STEPS})",
    )
    group.add_argument(
        "--restarts",
        type=positive_int,
        default=1,
        help="starting points, of which the best end is kept; the first is built around a symmetric set where one "
        "fits, the others are random; each takes as long as the first",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")


def add_report_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--check", metavar="FILE", help="make nothing: say how good this file is")
    group.add_argument("--json", action="store_true", help="the certificate as one JSON object, alone on stdout")
    group.add_argument(
        "--plot", metavar="PNG", help="draw the cosines of all pairs and the bounds; the points too when D is 2 or 3"
    )


def temperature(text: str) -> float:
    value = float(text)
    if not 0.005 <= value < float("inf"):  # exp(1/τ) is a number up to here
        raise argparse.ArgumentTypeError(f"found {text}, expected 0.005 or more")
    return value


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    num_classes, dim = size(args)
    if args.plot:
        check_place("--plot", Path(args.plot), args.overwrite)
        if Path(args.plot).suffix.lower() != ".png":
            raise errors.InputError(f"--plot {args.plot}: expected a name that ends in .png")
    if args.check:
        targets, file = checked(args.check, num_classes, dim), Path(args.check)
    else:
        num_classes, dim = num_classes or 1000, dim or DIM
        file = Path(args.output or target_file_name(num_classes, dim))
        check_place("--output", file, args.overwrite)
        search = {"seed": args.seed, "iters": args.iters, "restarts": args.restarts, "optimizer": args.optimizer}
        device = pick_device(args.device)
        targets = generate_file(
            file, num_classes, dim, args.temperature, device=device, keep_interrupted=True, **search
        )
    report(targets, file, args)


def size(args) -> tuple[int | None, int | None]:
    """C and D, as far as the command line says them."""
    if args.dataset and args.num_classes:
        raise errors.InputError("--dataset and --num-classes: both say the number of classes, give one of them")
    if args.check and args.output:
        raise errors.InputError("--check and --output: a check writes no targets, leave one of the two out")
    if args.optimizer == "adam" and args.restarts > 1:
        raise errors.InputError("--restarts: the release's recipe, --optimizer adam, has one start")
    if args.num_classes == 1 and not args.check:
        raise errors.InputError("--num-classes 1: one class has none to keep apart from, expected 2 or more")
    return REGISTRY[args.dataset].num_classes if args.dataset else args.num_classes, args.dim


def check_place(flag: str, file: Path, overwrite: bool) -> None:
    """Refuse a file that could not be written before anything is computed."""
    if file.is_dir() or not file.parent.is_dir():
        raise errors.InputError(f"{flag} {file}: expected the name of a file in a folder that is there")
    check_regular(file)
    if file.exists() and not overwrite:
        raise errors.InputError(f"{flag} {file}: is there already; --overwrite replaces it")


def checked(file: str, num_classes: int | None, dim: int | None) -> Tensor:
    """The targets of a file, of the size that is asked for, if any is."""
    targets = read_targets(file)
    shape = tuple(targets.shape) if targets.ndim == 2 else (num_classes or 1000, dim or DIM)
    check_targets(targets, num_classes or shape[0], dim or shape[1], source=f"targets {file}")
    return targets


def report(targets: Tensor, file: Path, args) -> None:
    """Print the certificate and draw the picture."""
    if len(targets) < 2:
        raise errors.InputError(f"{file}: one target alone has no cosines to report")
    facts = {"file": str(file)} | certificate(targets.numpy(), args.temperature)
    print(json_text(facts, indent=2) if args.json else as_text(facts), flush=True)
    if args.plot:
        from utils.target_plot import plot_targets  # matplotlib takes a second to import

        plot_targets(targets.numpy(), facts, Path(args.plot))
        tell(f"wrote {args.plot}")
    tell(f"next: a TSC run with --targeted --moco-dim {targets.shape[1]} --targets {file}")


def tell(line: str) -> None:
    """A line for the reader; stdout may be read by a program."""
    print(line, file=sys.stderr, flush=True)


def generate_file(
    output: Path, num_classes: int, dim: int, temperature: float = TEMPERATURE, keep_interrupted: bool = False, **search
) -> Tensor:
    """Make targets and write them as float32 (C, D) .npy, in a line that says so.

    Args:
        keep_interrupted: on Ctrl-C save the best set so far, and leave with exit code 130.
        search: see `generate`.
    """
    best = spread.Best()
    try:
        targets = generate(num_classes, dim, temperature, best=best, progress=True, **search)
    except KeyboardInterrupt:
        if best.points is None or not keep_interrupted:
            raise
        # What is there may be better than half a search.
        place = first_free(lambda n: interrupted_name(output, n)) if output.exists() else output
        save(place, best.points)
        tell(f"\ninterrupted: the best set so far is in {place}, {brief(best.points, temperature)}")
        sys.exit(130)
    save(output, targets)
    tell(f"wrote {output}: {brief(targets, temperature)}")
    return targets


def interrupted_name(output: Path, number: int) -> Path:
    """Where half a search goes, beside a file that is there: t.interrupted.npy, t.interrupted-2.npy, ..."""
    return output.with_suffix(".interrupted.npy" if number == 1 else f".interrupted-{number}.npy")


def save(output: Path, targets: Tensor) -> None:
    check_targets(targets, *targets.shape)
    write_whole(output, lambda file: np.save(file, targets.cpu().numpy()))


def brief(targets: Tensor, temperature: float) -> str:
    """The certificate in half a line."""
    text = f"{len(targets)} targets in R^{targets.shape[1]}"
    if len(targets) < 2:
        return text
    facts = certificate(targets.cpu().numpy(), temperature)
    gap = facts["gap_percent"]
    how = "optimal" if facts["optimal"] else "bound unknown" if gap is None else f"{gap:.2f} % above the lower bound"
    return f"{text}, energy ratio {facts['energy_ratio']:.4f}, {how}"


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
    progress: bool = False,
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
    with tqdm(total=iters * restarts, desc=title, unit="eval", leave=False, disable=None if progress else True) as bar:
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


if __name__ == "__main__":
    errors.run(main, "no file was written")
