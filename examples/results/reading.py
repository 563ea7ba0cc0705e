"""Read the results of a study from its run folders or its CSV table. Nothing is run."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from examples.results.plan import Plan
from examples.results.trials import Trial
from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.feature_measures import class_centres
from utils.measure.metrics import ClassAccuracy
from utils.measure.monitor import GEOMETRY_MEASURES
from utils.measure.results import SHOTS, accuracies
from utils.report.runs import Stage, read_results, read_stage


class TrialResult(NamedTuple):
    """The results of one finished trial.

    Attributes:
        heads: Content of results.json of its comparison of heads.
        stage: The run that trained the features; None for pixels.
        target_match: How closely the features match their targets; None without targets.
    """

    seed: int
    heads: dict
    stage: Stage | None
    target_match: "TargetMatch | None"

    @property
    def seconds(self) -> float:
        """Return the duration of the training epochs."""
        return sum(record["seconds"] for record in self.stage.epochs) if self.stage else 0.0

    def measure(self, name: str) -> float | None:
        """Return a measure of the validation features in the last epoch of stage 1: see utils/measure/monitor.py."""
        return (self.stage.epochs[-1].get("val") or {}).get(name) if self.stage else None


class TargetMatch(NamedTuple):
    """How closely TSC's validation features match their targets.

    Attributes:
        cosines: (C,) cosine of each class centre and its target.
        nearest: (C,) share of each class's images whose nearest target is that of their class, in percent.
    """

    cosines: np.ndarray
    nearest: np.ndarray


class Results(NamedTuple):
    """The results of all finished trials.

    Attributes:
        groups: (imbalance, method key) -> one result per seed.
        sweeps: Sweep key -> (method key, value) -> one result per seed.
    """

    plan: Plan
    groups: dict[tuple[float, str], list[TrialResult]]
    sweeps: dict[str, dict[tuple[str, str], list[TrialResult]]]


def read_trial(trial: Trial, seed: int) -> TrialResult:
    """Read the results of a finished trial."""
    folder = trial.run_dir
    if not (folder / "heads").is_dir():  # pixels
        return TrialResult(seed, read_results(folder / "results.json"), None, None)
    heads, stage = read_results(folder / "heads" / "results.json"), read_stage(folder)
    targeted = stage.args.get("targeted") and (folder / "features.npz").exists()
    return TrialResult(seed, heads, stage, target_match(read_features(folder)) if targeted else None)


def target_match(run: RunFeatures) -> TargetMatch | None:
    """Compare the features of a run with their targets. Return None if it has no targets."""
    if run.targets is None:
        return None
    centres = class_centres(run.features, run.labels, len(run.targets))
    nearest = ClassAccuracy(len(run.targets), torch.device("cpu"))
    nearest.add(run.features @ run.targets.T, run.labels)
    per_class = nearest.summary(run.class_counts.numpy())["per_class"]
    return TargetMatch((centres * run.targets).sum(1).numpy(), np.array(per_class, dtype=float))


def read_table(plan: Plan, table: Path) -> Results:
    """Read the results of a study from the CSV table of its page, without the run folders.

    The results have what the summary and its sentences need: test and validation accuracies, measures and seconds.

    Raises:
        InputError: The table does not exist, or does not belong to the plan.
    """
    groups: dict[tuple[float, str], list[TrialResult]] = {
        (rho, key): [] for rho in plan.imbalances for key in plan.methods
    }
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row["sweep"]:
                    groups[float(row["imbalance"]), row["method"]].append(_from_row(row))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{table}: not the table of {plan.title} ({type(error).__name__}: {error})") from None
    return Results(plan, groups, {})


def _from_row(row: dict[str, str]) -> TrialResult:
    numbers = {name: float(text) if text else None for name, text in row.items() if name not in ("method", "head")}
    entry = {name: numbers[name] for name in SHOTS} | {"acc1": numbers["all"], "val_balanced": numbers["val"]}
    measures = {name: numbers[name] for name in GEOMETRY_MEASURES}
    stage = (
        Stage(Path(), {"args": {}}, [{"seconds": numbers["seconds"], "val": measures}]) if numbers["seconds"] else None
    )
    return TrialResult(int(numbers["seed"]), {"selected": entry}, stage, None)


def accuracy(runs: list[TrialResult], head: str | None = None) -> np.ndarray:
    """Return accuracies, (trials, 4), over many-, medium-, few-shot and all classes. nan: there are no such classes.

    Args:
        head: Title of a head. None for the head selected on validation.
    """
    entries = [run.heads["selected"] if head is None else run.heads["heads"][head] for run in runs]
    return np.array([accuracies(entry) for entry in entries], dtype=float)


def paired_differences(results: Results, imbalance: float, keys: tuple[str, str]) -> np.ndarray:
    """Return the paired differences of two methods, (trials, 4), over the seeds that both have."""
    first, second = (results.groups[imbalance, key] for key in keys)
    longest = max(len(first), len(second))
    # Pixels have a single run, which is paired with every seed.
    first, second = (runs * longest if runs[0].stage is None else runs for runs in (first, second))
    shared = min(len(first), len(second))
    return accuracy(first[:shared]) - accuracy(second[:shared])
