"""Create class targets for TSC: unit vectors in R^D, spread as evenly as possible.

For ImageNet-LT (optimal_1000_128.npy):
    python target_generation.py

For another data set, or for any number of classes:
    python target_generation.py --dataset inat
    python target_generation.py --num-classes 10 --output optimal_10_128.npy

Report how evenly the targets of a file are spread, and plot their cosines:
    python target_generation.py --check optimal_1000_128.npy --plot targets.png
"""

import utils.startup  # noqa: F401, imported before the modules that take seconds to load

# isort: split

from pathlib import Path

from torch import Tensor

from imagenet_inat.datasets import REGISTRY
from moco.targets import optimize
from moco.targets.bounds import format_quality, target_quality
from moco.targets.files import check_targets, read_targets, target_file_name
from moco.targets.generation import DIM, EVALUATIONS, TEMPERATURE, generate_file
from utils import errors
from utils.cli.flags import When
from utils.cli.numbers import number_type, positive_int, seed_number
from utils.cli.parser import Parser, parse
from utils.devices import check_memory, pick_device
from utils.files import check_output, format_json
from utils.openmp import SpinGuard

# Keeps exp(1/τ) finite.
temperature = number_type("temperature", float, lambda value: 0.005 <= value < float("inf"), "0.005 or more")
WITH_CHECK = When("with --check, which creates no targets", lambda args: args.check)


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--num-classes",
        type=positive_int,
        metavar="C",
        help="Number of classes, one target each (default: 1000).",
        refused=(When("with --dataset, which sets the number of classes", lambda args: args.dataset),),
    )
    parser.add_argument(
        "--dataset",
        choices=sorted(REGISTRY),
        metavar="NAME",
        help="Data set whose number of classes is used, instead of --num-classes: %(choices)s.",
    )
    parser.add_argument(
        "--dim", type=positive_int, metavar="D", help=f"Dimension, the --moco-dim of the TSC run (default: {DIM})."
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=TEMPERATURE,
        metavar="T",
        help="Temperature T of the energy ratio, the mean of exp(t_i·t_j / T) over pairs of targets; 0.05 to 0.2. "
        "Smaller values weigh the nearest neighbours more. The targets of lbfgs do not depend on it if C ≤ D + 1.",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="File to write (default: optimal_<C>_<D>.npy in the current folder).",
        refused=(WITH_CHECK,),
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files of --output and --plot.")
    group = parser.add_argument_group(
        "Search", "If C ≤ D + 1, lbfgs takes the known optimum: only --seed has an effect."
    )
    group.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="Random seed of the starting points, or of the random rotation of the known optimum.",
        refused=(WITH_CHECK,),
    )
    group.add_argument(
        "--optimizer",
        choices=["lbfgs", "adam"],
        default="lbfgs",
        help="Optimiser of the search. adam is the authors' recipe, for comparison.",
        refused=(WITH_CHECK,),
    )
    group.add_argument(
        "--iters",
        type=positive_int,
        metavar="N",
        help="Maximum number of energy evaluations per starting point. More than the default helps little "
        f"(default: {EVALUATIONS}, or {optimize.RELEASE_STEPS} with adam).",
        refused=(WITH_CHECK,),
    )
    group.add_argument(
        "--restarts",
        type=positive_int,
        default=1,
        metavar="N",
        help="Number of starting points, of which the best result is kept. The time grows in proportion.",
        refused=(
            WITH_CHECK,
            When("with --optimizer adam (one start)", lambda args: args.optimizer == "adam" and args.restarts > 1),
        ),
    )
    group.add_argument(
        "--device",
        default="auto",
        help="Device, such as cpu or cuda:1; auto uses a GPU if available.",
        refused=(WITH_CHECK,),
    )
    group = parser.add_argument_group("Report")
    group.add_argument("--check", metavar="FILE", help="Report the quality of this file, and create no targets.")
    group.add_argument("--json", action="store_true", help="Print the report as one JSON object.")
    group.add_argument(
        "--plot", metavar="PNG", help="Plot the cosines of all pairs, and the targets themselves if D is 2 or 3."
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv)
    if args.num_classes == 1 and not args.check:
        raise errors.InputError("--num-classes 1: expected 2 or more")
    num_classes = REGISTRY[args.dataset].num_classes if args.dataset else args.num_classes
    dim = args.dim
    if args.plot:
        check_output("--plot", Path(args.plot), args.overwrite, (".png", ".PNG"))
    if args.check:
        targets, file = read_checked_targets(args.check, num_classes, dim), Path(args.check)
    else:
        num_classes, dim = num_classes or 1000, dim or DIM
        history_bytes = 2 * optimize.HISTORY * 4 * num_classes * dim  # of L-BFGS, in float32
        check_memory(f"--num-classes {num_classes} --dim {dim}", "the search", history_bytes, "use smaller values")
        file = Path(args.output or target_file_name(num_classes, dim))
        check_output("--output", file, args.overwrite)
        search = {name: getattr(args, name) for name in ("temperature", "seed", "iters", "restarts", "optimizer")}
        device = pick_device(args.device)
        with SpinGuard():
            targets = generate_file(file, num_classes, dim, keep_interrupted=True, device=device, **search)
    report(targets, file, args.temperature, args.plot, args.json)


def read_checked_targets(file: str, num_classes: int | None, dim: int | None) -> Tensor:
    """Read the targets of a file and check their values. Also check C and D, if the command line sets them."""
    targets = read_targets(file)
    # An array that is not 2-D has no C and D. The error message then names the default size as the expected one.
    rows, columns = tuple(targets.shape) if targets.ndim == 2 else (1000, DIM)
    check_targets(targets, num_classes or rows, dim or columns, source=f"targets {file}")
    return targets


def report(targets: Tensor, file: Path, temperature: float, plot: str | None, as_json: bool) -> None:
    """Print the quality report, and with --plot draw it."""
    if len(targets) < 2:
        raise errors.InputError(f"{file}: holds one target, expected 2 or more to report cosines")
    facts = {"file": str(file)} | target_quality(targets.numpy(), temperature)
    print(format_json(facts, indent=2) if as_json else errors.printable(format_quality(facts)), flush=True)
    if plot:
        from moco.targets.picture import plot_targets  # matplotlib takes a second to import

        plot_targets(targets.numpy(), facts, Path(plot))
        errors.print_stderr(f"wrote {plot}")
    errors.print_stderr(f"next: train TSC with --targeted --moco-dim {targets.shape[1]} --targets {file}")


if __name__ == "__main__":
    errors.run(main)
