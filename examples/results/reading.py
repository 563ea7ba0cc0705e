"""Read the results of a study from its run folders. Nothing is run."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from examples.results.plan import Plan
from examples.results.trials import Trial
from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.features import class_centres
from utils.measure.metrics import ClassAccuracy
from utils.measure.monitor import SPREAD
from utils.measure.results import SHOTS, accuracies
from utils.report.runs import Stage, read_results, read_stage


class Found(NamedTuple):
    """The results of one finished trial.

    Attributes:
        heads: Content of results.json of its comparison of heads.
        stage: The run that trained the features; None for pixels.
        reached: How closely the targets were reached; None without targets.
    """

    seed: int
    heads: dict
    stage: Stage | None
    reached: "Reached | None"

    @property
    def seconds(self) -> float:
        """Return the duration of the training epochs."""
        return sum(record["seconds"] for record in self.stage.epochs) if self.stage else 0.0

    def measure(self, name: str) -> float | None:
        """Return a measure of the validation features in the last epoch of stage 1: see utils/measure/monitor.py."""
        return (self.stage.epochs[-1].get("val") or {}).get(name) if self.stage else None


class Reached(NamedTuple):
    """How closely TSC's validation features reached their targets.

    Attributes:
        cosines: (C,) cosine of each class centre and its target.
        nearest: (C,) share of each class's images whose nearest target is their own, in percent.
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
    groups: dict[tuple[float, str], list[Found]]
    sweeps: dict[str, dict[tuple[str, str], list[Found]]]


def found(trial: Trial, seed: int) -> Found:
    """Read the results of a finished trial."""
    folder = trial.run_dir
    if not (folder / "heads").is_dir():  # pixels
        return Found(seed, read_results(folder / "results.json"), None, None)
    heads, stage = read_results(folder / "heads" / "results.json"), read_stage(folder)
    targeted = stage.args.get("targeted") and (folder / "features.npz").exists()
    return Found(seed, heads, stage, reached(read_features(folder)) if targeted else None)


def reached(run: RunFeatures) -> Reached | None:
    if run.targets is None:
        return None
    centres = class_centres(run.features, run.labels, len(run.targets))
    nearest = ClassAccuracy(len(run.targets), torch.device("cpu"))
    nearest.add(run.features @ run.targets.T, run.labels)
    per_class = nearest.summary(run.class_counts.numpy())["per_class"]
    return Reached((centres * run.targets).sum(1).numpy(), np.array(per_class, dtype=float))


def read_table(plan: Plan, table: Path) -> Results:
    """Read the runs of a study from the table of its page (CSV), where the run folders no longer exist.

    Holds what the summary and its sentences need: accuracies, validation accuracy, measures and seconds.

    Raises:
        InputError: the table does not exist, or does not belong to the plan.
    """
    groups: dict[tuple[float, str], list[Found]] = {(rho, key): [] for rho in plan.imbalances for key in plan.methods}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row["sweep"]:
                    groups[float(row["imbalance"]), row["method"]].append(_found_in(row))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{table}: not the table of {plan.title} ({type(error).__name__}: {error})") from None
    return Results(plan, groups, {})


def _found_in(row: dict[str, str]) -> Found:
    number = {name: float(text) if text else None for name, text in row.items() if name not in ("method", "head")}
    entry = {name: number[name] for name in SHOTS} | {"acc1": number["all"], "val_balanced": number["val"]}
    measures = {name: number[name] for name in SPREAD}
    stage = (
        Stage(Path(), {"args": {}}, [{"seconds": number["seconds"], "val": measures}]) if number["seconds"] else None
    )
    return Found(int(number["seed"]), {"selected": entry}, stage, None)


def accuracy(runs: list[Found], head: str | None = None) -> np.ndarray:
    """Return accuracies (trials, 4) over many, medium, few and all classes; nan if there are no such classes.

    head: Title of a head; None for the one selected on validation.
    """
    entries = [run.heads["selected"] if head is None else run.heads["heads"][head] for run in runs]
    return np.array([accuracies(entry) for entry in entries], dtype=float)


def pair(results: Results, imbalance: float, keys: tuple[str, str]) -> np.ndarray:
    """Return the paired differences (trials, 4) of two methods, over the seeds that both have."""
    one, other = (results.groups[imbalance, key] for key in keys)
    most = max(len(one), len(other))
    one, other = (runs * most if runs[0].stage is None else runs for runs in (one, other))  # pixels: one run for all
    both = min(len(one), len(other))
    return accuracy(one[:both]) - accuracy(other[:both])
