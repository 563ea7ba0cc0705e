"""Trials: groups of runs that differ in their seed alone, and how two such groups differ."""

import glob
import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats

from utils.errors import InputError
from utils.measure.results import CHOICES, SHOTS, accuracies, made_with, percent
from utils.report.page import Section, Table
from utils.report.runs import Run, differences, read_run, short_names

CONFIDENCE = 0.95
MEANING = (
    "± is the standard deviation over trials. Paired: trials of one seed are subtracted, and the interval is "
    "Student's t of those differences; one that holds 0 says nothing of which is better."
)


class Group(NamedTuple):
    """Runs that differ in the seed alone, sorted by it."""

    name: str
    runs: list[Run]

    def accuracy(self, choice: str) -> np.ndarray:
        """(trials, 4) many, medium, few, all, of the epoch of one of CHOICES; nan for shots without a class."""
        return np.array([accuracies(run.results[choice]) for run in self.runs], dtype=float)


def read_groups(patterns: list[str]) -> list[Group]:
    """One group a pattern, and the same seeds in each, or InputError: trials are paired by them."""
    groups = [read_group(pattern) for pattern in patterns]
    first = groups[0]
    for other in groups[1:]:
        mine, its = ({run.seeds for run in group.runs} for group in (first, other))
        if mine != its:
            raise InputError(
                f"{first.name} has seeds {_listed(mine - its)} and {other.name} has {_listed(its - mine)} that the "
                "other has not; trials are compared in pairs of one seed: name the pairs alone, or run what is missing"
            )
    return groups


def read_group(pattern: str) -> Group:
    """The finished runs whose folders a shell pattern matches. Raises InputError: fewer than two; as `group_of`."""
    folders = sorted(glob.glob(pattern.rstrip("/")))  # noqa: PTH207, the pattern may be absolute
    if len(folders) < 2:
        found = f"matches {folders[0]} alone" if folders else "matches no folder"
        raise InputError(
            f"--trials {pattern}: {found}, expected two or more runs; put the pattern into quotation marks"
        )
    return group_of(pattern, folders)


def group_of(name: str, folders: list[str]) -> Group:
    """The finished runs in these folders.

    Raises:
        InputError: one without results, two of one seed, or runs that differ in more than the
            seed, each with the list of differences.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.results is None:
            raise InputError(f"{run.name}: has no results.json yet, its probe has not ended")
    if changed := differences(runs):
        listed = "; ".join(f"{argument}: {_by_run(runs, values)}" for argument, values in changed.items())
        raise InputError(f"{name}: its runs differ in more than the seed: {listed}")
    runs.sort(key=lambda run: run.seeds)
    for one, next_one in itertools.pairwise(runs):
        if one.seeds == next_one.seeds:
            raise InputError(f"{one.name} and {next_one.name}: the same seed, {_seed(one)}: one trial, not two")
    return Group(name, runs)


def _by_run(runs: list[Run], values: list) -> str:
    """`0.1 in a, b and 0.2 in c`, for a message."""
    places: dict[str, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        places.setdefault(str(value), []).append(run.name)
    return " and ".join(f"{value} in {', '.join(names)}" for value, names in places.items())


def _listed(seeds: set) -> str:
    return ", ".join("/".join(map(str, seed)) for seed in sorted(seeds)) or "none"


def _seed(run: Run) -> str:
    """The seed, or both where the stages have different ones."""
    return "/".join(map(str, dict.fromkeys(run.seeds)))


def _short(groups: list[Group]) -> list[str]:
    return [f"`{name}`" for name in short_names([group.name for group in groups])]


def table(groups: list[Group], choice: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each trial, each group's mean ± standard deviation, paired differences to the first group."""
    rows, names = [], _short(groups)
    runs = [run for group in groups for run in group.runs]
    for folder, run in zip(short_names([run.name for run in runs]), runs, strict=True):
        entry = run.results[choice]
        rows.append([folder, _seed(run), made_with(entry), *map(percent, accuracies(entry))])
    measured = [group.accuracy(choice) for group in groups]
    for name, values in zip(names, measured, strict=True):
        rows.append([name, f"{len(values)} trials", "mean ± std", *map(mean_and_std, values.T)])
    for name, values in zip(names[1:], measured[1:], strict=True):
        cells = map(with_interval, (values - measured[0]).T)
        rows.append([f"{name} − {names[0]}", "paired", "mean [95 %]", *cells])
    return ["run", "seed", "epoch", *SHOTS, "all"], rows


def mean_and_std(values: np.ndarray) -> str:
    """Of (n,) trials, for a table; – if one has no such value."""
    return "–" if np.isnan(values).any() else f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def with_interval(values: np.ndarray) -> str:
    """Mean of (n,) paired differences and its 95 % interval, for a table; – if one has no such value."""
    if np.isnan(values).any():
        return "–"
    mean, low, high = paired_difference(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def paired_difference(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of (n,) differences of pairs, and the ends of its 95 % interval by Student's t with n − 1 degrees."""
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def notes(groups: list[Group]) -> list[str]:
    """What sets the groups apart besides their name, and what sets any runs apart that is no argument."""
    firsts = [group.runs[0]._replace(name=name) for name, group in zip(_short(groups), groups, strict=True)]
    lines = [f"{argument}: {_by_run(firsts, values)}" for argument, values in differences(firsts).items()]
    runs = [run for group in groups for run in group.runs]
    for what in ("git", "machine", "versions", "processes"):
        values = [str((run.pretraining or run.probe).about.get(what)) for run in runs]
        if len(set(values)) > 1:
            lines.append(f"not all by the same {what}: {_by_run(runs, values)}")
    return lines


def section(groups: list[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    there = [choice for choice in CHOICES if all(choice in run.results for run in runs)]  # a fitted head has but one
    tables = tuple(Table(*table(groups, choice), words=3, title=f"{choice}: {CHOICES[choice]}") for choice in there)
    return Section("Trials: top-1 test accuracy in percent", (*notes(groups), MEANING), tables)
