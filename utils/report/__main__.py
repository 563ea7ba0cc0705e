"""Write a report of runs (report.html, tables and figures), or compare groups of runs.

Report runs side by side (RUN is a stage-1 folder with its probe in it, or a probe's folder):
    python -m utils.report runs/demo/kcl runs/demo/tsc --output runs/demo

Compare groups of runs that differ only in their seed, and print a Markdown table:
    python -m utils.report --trials 'runs/kcl_s*' 'runs/tsc_s*'
"""

from utils import startup  # before the imports that take seconds

# isort: split

from pathlib import Path

from utils import errors
from utils.cli.parser import Parser


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Run folders to show side by side.")
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="PATTERN",
        default=[],
        help="One quoted pattern per group of runs. Runs of a group differ only in the seed, and all groups need the "
        "same seeds; differences are to the first group.",
    )
    parser.add_argument("--output", metavar="DIR", help="Folder for the report (default: the first RUN).")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if not args.runs and not args.trials:
        raise errors.InputError("expected a RUN folder, or groups with --trials")
    if args.output and not args.runs:
        raise errors.InputError("--output: not used without a RUN; append > FILE to write the printed trials")
    with startup.slow_imports():
        from utils.report import build

    if args.runs:
        build.write(args.runs, args.trials, Path(args.output or args.runs[0]))
    else:
        build.print_trials(args.trials)


if __name__ == "__main__":
    errors.run(main)
