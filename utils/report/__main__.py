"""Write a report of runs (report.html, tables and figures), or compare groups of runs.

Report runs side by side (RUN is a stage-1 folder with its probe in it, or a probe's folder):
    python -m utils.report runs/demo/kcl runs/demo/tsc --output runs/demo

Compare groups of runs that differ only in their seed, and print a Markdown table:
    python -m utils.report --trials 'runs/kcl_s*' 'runs/tsc_s*'
"""

import utils.startup  # noqa: F401, before the imports that take seconds

# isort: split

from pathlib import Path

from utils import errors
from utils.cli.parser import Parser
from utils.distributed import log
from utils.report import sections, trials
from utils.report.confusions import confusions
from utils.report.features import features
from utils.report.page import format_markdown_section, write_report
from utils.report.runs import Run, read_run, short_names


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
    trial_sections = [trials.section(trials.read_groups(args.trials))] if args.trials else []
    if not args.runs:
        print(errors.printable(format_markdown_section(trial_sections[0])), end="")
        return
    runs = with_short_names([read_run(path) for path in args.runs])
    drawn = runs[: sections.MAX_DRAWN]
    # Results come first, settings last.
    page_sections = [sections.accuracy(runs), *trial_sections, *sections.drawn_runs(runs)]
    page_sections += [sections.curves(drawn), *sections.heads(drawn), *confusions(drawn), *features(drawn)]
    page_sections += [make(runs) for make in (sections.overview, sections.commands, sections.arguments)]
    title = "Report of " + (", ".join(run.name for run in runs) if runs == drawn else f"{len(runs)} runs")
    page, text = write_report(Path(args.output or args.runs[0]), title, page_sections)
    log(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB, all in one file) and {text.name}")
    log(f"open {page.resolve().as_uri()} in a browser")


def with_short_names(runs: list[Run]) -> list[Run]:
    """Return the runs with short names. Raise InputError if a folder is named twice."""
    paths = [str(Path(run.name).resolve()) for run in runs]
    if len(set(paths)) < len(paths):
        raise errors.InputError("the same RUN is given twice; remove one")
    return [run._replace(name=name) for run, name in zip(runs, short_names(paths), strict=True)]


if __name__ == "__main__":
    errors.run(main)
