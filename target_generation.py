"""Create class targets for TSC: unit vectors in R^D, spread as evenly as possible.

For ImageNet-LT (optimal_1000_128.npy):
    python target_generation.py

For another data set, or for any number of classes:
    python target_generation.py --dataset inat
    python target_generation.py --num-classes 10 --output optimal_10_128.npy

Report how evenly the targets of a file are spread, and plot their cosines:
    python target_generation.py --check optimal_1000_128.npy --plot targets.png
"""

from utils import startup  # before imports that take seconds

# isort: split

from pathlib import Path

from imagenet_inat.datasets import REGISTRY
from moco.targets.defaults import DIM, EVALUATIONS, RELEASE_STEPS, TEMPERATURE
from utils import errors
from utils.cli.flags import When
from utils.cli.numbers import number_type, positive_int, seed_number
from utils.cli.parser import Parser, parse
from utils.files import check_output

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
        f"(default: {EVALUATIONS}, or {RELEASE_STEPS} with adam).",
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
    if args.plot:
        check_output("--plot", Path(args.plot), args.overwrite, (".png", ".PNG"))
    with startup.slow_imports():
        from moco.targets import command

    if args.check:
        targets, file = command.read_checked(args.check, num_classes, args.dim), Path(args.check)
    else:
        search = {name: getattr(args, name) for name in ("temperature", "seed", "iters", "restarts", "optimizer")}
        num_classes, dim = num_classes or 1000, args.dim or DIM
        targets, file = command.create(args.output, num_classes, dim, args.device, args.overwrite, **search)
    command.report(targets, file, args.temperature, args.plot, args.json)


if __name__ == "__main__":
    errors.run(main)
