"""Trials: groups of runs that differ only in the seed, and paired comparisons of groups.

If all runs have results of --compare-heads, a run has the accuracy of the classifier that was selected on validation.
Otherwise it has that of the only classifier in its folder.
"""

import glob
import itertools
import os
from typing import NamedTuple

import numpy as np
from scipy import stats

from utils.errors import InputError
from utils.measure.results import CHOICES, SHOTS, accuracies, best_head, format_percent, format_settings
from utils.report.page import Section, Table
from utils.report.runs import Run, differences, read_run, short_names

CONFIDENCE = 0.95
MEANING = (
    "± is the standard deviation over trials. Paired: the difference of two trials with the same seed; the interval is "
    "the 95 % Student's t interval of these differences. If it contains 0, the difference is not significant."
)


class Group(NamedTuple):
    """Runs that differ only in the seed, sorted by seed."""

    name: str
    runs: list[Run]

    def accuracy(self, choice: str) -> np.ndarray:
        """Return accuracies, (trials, 4): many, medium, few, all, for one of CHOICES; nan for shots without a class."""
        return np.array([accuracies(run.results[choice]) for run in self.runs], dtype=float)


def read_groups(patterns: list[str]) -> list[Group]:
    """Read one group of finished runs per pattern, such as `runs/kcl_s*`.

    Raises:
        InputError: Fewer than two folders match a pattern, a run has no results, the runs of a group differ in more
            than the seed, or groups have different seeds, by which they are paired.
    """
    runs = [[read_run(folder) for folder in _folders_of(pattern)] for pattern in patterns]
    if all(run.comparison for group in runs for run in group):
        runs = [list(map(_compared, group)) for group in runs]
    groups = [_build_group(pattern, group) for pattern, group in zip(patterns, runs, strict=True)]
    first = groups[0]
    for other in groups[1:]:
        first_seeds, other_seeds = ({run.seeds for run in group.runs} for group in (first, other))
        if first_seeds != other_seeds:
            raise InputError(
                f"seeds differ: only {first.name} has {_format_seeds(first_seeds - other_seeds)}, only {other.name} "
                f"has {_format_seeds(other_seeds - first_seeds)}; give patterns with the same seeds, or run the "
                "missing ones"
            )
    return groups


def _folders_of(pattern: str) -> list[str]:
    """Return the folders that match a shell pattern. Raise InputError if they are fewer than two."""
    folders = _matching_folders(pattern.rstrip("/"))
    if len(folders) < 2:
        matches = f"matches only {folders[0]}" if folders else "matches no folder"
        raise InputError(
            f"--trials {pattern}: {matches}, expected two or more runs; put the pattern in quotation marks"
        )
    return folders


def _matching_folders(pattern: str) -> list[str]:
    """Return the folders that match a shell pattern. Brackets may also be part of a folder's name."""
    parent, name = os.path.split(pattern)
    readings = itertools.product((parent, glob.escape(parent)), (name, name.replace("[", "[[]")))
    return max((sorted(glob.glob(os.path.join(*reading))) for reading in readings), key=len)  # noqa: PTH118, PTH207


def _compared(run: Run) -> Run:
    """Return the run with the results of --compare-heads instead of those of a single classifier."""
    return run._replace(pretraining=run.pretraining or run.probe, probe=run.comparison, results=run.heads)


def _build_group(name: str, runs: list[Run]) -> Group:
    """Check and sort the runs of a group. Raise InputError as `read_groups` does; the message lists differences."""
    for run in runs:
        if run.results is None:
            raise InputError(
                f"{run.name}: has no results.json, because its probe has not finished"
                if run.probe
                else f"{run.name}: has no results of a classifier; fit one, or run --compare-heads for all runs"
            )
    if changed := differences(runs):
        listed = "; ".join(f"{argument}: {_format_by_run(runs, values)}" for argument, values in changed.items())
        raise InputError(f"{name}: the runs differ in more than the seed: {listed}")
    runs = sorted(runs, key=lambda run: run.seeds)
    for one, next_one in itertools.pairwise(runs):
        if one.seeds == next_one.seeds:
            raise InputError(f"{one.name} and {next_one.name}: same seed {_format_seed(one)}, expected different seeds")
    return Group(name, runs)


def _format_by_run(runs: list[Run], values: list) -> str:
    """Format values for a message: `0.1 in a, b and 0.2 in c`."""
    runs_by_value: dict[str, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        runs_by_value.setdefault(str(value), []).append(run.name)
    return " and ".join(f"{value} in {', '.join(names)}" for value, names in runs_by_value.items())


def _format_seeds(seeds: set) -> str:
    return ", ".join("/".join(map(str, seed)) for seed in sorted(seeds)) or "none"


def _format_seed(run: Run) -> str:
    """Return the seed as text, or both seeds if the stages differ."""
    return "/".join(map(str, dict.fromkeys(run.seeds)))


def _short_group_names(groups: list[Group]) -> list[str]:
    return [f"`{name}`" for name in short_names([group.name for group in groups])]


def table(groups: list[Group], choice: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: trials, mean ± standard deviation per group, paired differences to the first group."""
    rows, names = [], _short_group_names(groups)
    runs = [run for group in groups for run in group.runs]
    for folder, run in zip(short_names([run.name for run in runs]), runs, strict=True):
        entry = run.results[choice]
        heads = run.results.get("heads")
        classifier = best_head(heads) if heads else format_settings(entry)
        rows.append([folder, _format_seed(run), classifier, *map(format_percent, accuracies(entry))])
    measured = [group.accuracy(choice) for group in groups]
    for name, values in zip(names, measured, strict=True):
        rows.append([name, f"{len(values)} trials", "mean ± std", *map(format_mean_and_std, values.T)])
    for name, values in zip(names[1:], measured[1:], strict=True):
        cells = map(format_interval, (values - measured[0]).T)
        rows.append([f"{name} − {names[0]}", "paired", "mean [95 %]", *cells])
    return ["run", "seed", "epoch or classifier", *SHOTS, "all"], rows


def format_mean_and_std(values: np.ndarray) -> str:
    """Format mean ± standard deviation of (n,) trials; "–" if a value is missing."""
    return "–" if np.isnan(values).any() else f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def format_interval(values: np.ndarray) -> str:
    """Format the mean of (n,) paired differences and its 95 % interval; "–" if a value is missing."""
    if np.isnan(values).any():
        return "–"
    mean, low, high = paired_difference(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def paired_difference(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of (n,) paired differences and the bounds of its 95 % interval.

    The interval is Student's t interval with n − 1 degrees of freedom.
    """
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def notes(groups: list[Group]) -> list[str]:
    """Return lines with the arguments, commits, machines, processors and versions that differ between groups."""
    firsts = [group.runs[0]._replace(name=name) for name, group in zip(_short_group_names(groups), groups, strict=True)]
    changed, common = differences(firsts), set.intersection(*({*run.deciding_arguments()} for run in firsts))
    lines = [f"{name}: {_format_by_run(firsts, values)}" for name, values in changed.items() if name in common]
    if others := [name for name in changed if name not in common]:
        lines.append(f"arguments that some of the groups do not have: {', '.join(others)}")
    runs = [run for group in groups for run in group.runs]
    for what in ("git", "machine", "processor", "versions", "processes"):
        values = [str((run.pretraining or run.probe).about.get(what, "unknown")) for run in runs]
        if len(set(values)) > 1:
            lines.append(f"{what} differs between runs: {_format_by_run(runs, values)}")
    return lines


def section(groups: list[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    available = [choice for choice in CHOICES if all(choice in run.results for run in runs)]  # fitted heads have one
    tables = tuple(
        Table(*table(groups, choice), text_columns=3, title=f"{choice}: {CHOICES[choice]}") for choice in available
    )
    return Section("Trials: top-1 test accuracy in percent", (*notes(groups), MEANING), tables)
