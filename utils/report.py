"""What runs did: a page of tables and figures, and the trials table.

A run is a folder of stage 1 with its probe in it, or the folder of a probe:
    python -m utils.report runs/demo/kcl runs/demo/tsc --output runs/demo

Trials, groups of runs that differ in their seed alone, as Markdown on the console; beside runs, in their report:
    python -m utils.report --trials 'runs/kcl_s*' 'runs/tsc_s*'
"""

from pathlib import Path

from utils import errors, trials
from utils.arguments import Parser
from utils.logger import say
from utils.report_page import markdown_section, write_report
from utils.report_sections import commands, feature_sections, run_sections
from utils.resolve import pick_device
from utils.run_features import need_data
from utils.runs import Run, read_run, short_names


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs to show side by side")
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="PATTERN",
        default=[],
        help="one group of runs a pattern, in quotation marks; groups must have the same seeds, and runs of a "
        "group may differ in nothing else; differences are to the first group",
    )
    parser.add_argument("--output", metavar="DIR", help="where the report goes (default: the first RUN)")
    parser.add_argument(
        "--no-features",
        action="store_true",
        help="leave out what needs a pass of the encoder over the validation images: class centres, targets, map",
    )
    parser.add_argument("--data-root", metavar="DIR", help="of the images (default: where they were for the run)")
    parser.add_argument(
        "--device", default="auto", help="of the encoder: cpu, cuda, cuda:1, ...; auto: a GPU if there is one"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if not args.runs and not args.trials:
        raise errors.InputError("name a RUN folder, or groups with --trials")
    if args.output and not args.runs:
        raise errors.InputError("--output: trials without a RUN are printed; append > FILE, or name RUNs for a report")
    groups = trials.read_groups(args.trials) if args.trials else []
    if not args.runs:
        print(markdown_section(trials.section(groups)), end="")
        return
    args.device = pick_device(args.device)
    runs = named([read_run(path) for path in args.runs])
    if args.data_root and not args.no_features:
        for stage in (run.pretraining for run in runs if run.pretraining):
            need_data(stage, args.data_root)
    make_report(runs, groups, Path(args.output or args.runs[0]), args)


def make_report(runs: list[Run], groups: list[trials.Group], folder: Path, args) -> None:
    sections = run_sections(runs)
    if groups:
        sections.append(trials.section(groups))
    if not args.no_features:
        sections += feature_sections(runs, args.device, args.data_root)
    sections.append(commands(runs))
    page, text = write_report(folder, "Report of " + ", ".join(run.name for run in runs), sections)
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB, all in one file) and {text.name}")
    say(f"open {page.resolve().as_uri()} in a browser")


def named(runs: list[Run]) -> list[Run]:
    """The runs under short names.

    Raises:
        InputError: the same folder twice.
    """
    paths = [str(Path(run.name).resolve()) for run in runs]
    if len(set(paths)) < len(paths):
        raise errors.InputError("the same RUN is named twice")
    return [run._replace(name=name) for run, name in zip(runs, short_names(paths), strict=True)]


if __name__ == "__main__":
    errors.run(main)
