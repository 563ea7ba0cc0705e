"""Build a report from run folders."""

from pathlib import Path

from utils.distributed import log
from utils.errors import InputError, printable
from utils.report import sections, trials
from utils.report.confusions import confusions
from utils.report.features import features
from utils.report.page import check_report_folder, format_markdown_section, write_report
from utils.report.runs import Run, read_run, short_names


def print_trials(patterns: list[str]) -> None:
    """Print the comparison of groups of runs, in Markdown. patterns: one shell pattern per group."""
    print(printable(format_markdown_section(trials.section(trials.read_groups(patterns)))), end="")


def write(paths: list[str], patterns: list[str], folder: Path) -> None:
    """Write the report of these run folders, with a comparison of groups if `patterns` is not empty, to a folder."""
    check_report_folder(folder)
    trial_sections = [trials.section(trials.read_groups(patterns))] if patterns else []
    runs = with_short_names([read_run(path) for path in paths])
    drawn = runs[: sections.MAX_DRAWN]
    # Results come first, settings last.
    page_sections = [sections.accuracy(runs), *trial_sections, *sections.drawn_runs(runs)]
    page_sections += [sections.curves(drawn), *sections.heads(drawn), *confusions(drawn), *features(drawn)]
    page_sections += [make(runs) for make in (sections.overview, sections.commands, sections.arguments)]
    title = "Report of " + (", ".join(run.name for run in runs) if runs == drawn else f"{len(runs)} runs")
    page, text = write_report(folder, title, page_sections)
    log(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB, all in one file) and {text.name}")
    log(f"open {page.resolve().as_uri()} in a browser")


def with_short_names(runs: list[Run]) -> list[Run]:
    """Return the runs with short names. Raise InputError if a folder is named twice."""
    paths = [str(Path(run.name).resolve()) for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("the same RUN is given twice; remove one")
    return [run._replace(name=name) for run, name in zip(runs, short_names(paths), strict=True)]
