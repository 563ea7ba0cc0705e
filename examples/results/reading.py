"""Read the results of a study from its run folders or its CSV table, and write the table. Nothing is run."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from examples.results.plan import TRAINS_NETWORK, Plan, StudyMethod
from examples.results.trials import Trial
from utils.errors import InputError
from utils.files import format_csv
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.feature_measures import class_centres
from utils.measure.metrics import ClassAccuracy
from utils.measure.monitor import GEOMETRY_MEASURES
from utils.measure.results import SHOTS, accuracies, best_head
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

    @property
    def device(self) -> str:
        """Return the kind of device that trained the features, such as "cpu" or "cuda". "": unknown, or pixels."""
        return str(self.stage.args.get("device", "")).split(":")[0] if self.stage else ""

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


Groups = dict[tuple[float, str], list[TrialResult]]  # (imbalance, method key) -> one result per seed


class Results(NamedTuple):
    """The results of all finished trials.

    Attributes:
        groups: The results of all methods; with lengths, of those at the longest one.
        sweeps: Sweep key -> (method key, value) -> one result per seed.
        lengths: Length -> the results of the methods that are trained at this length, if the plan has lengths.
    """

    plan: Plan
    groups: Groups
    sweeps: dict[str, dict[tuple[str, str], list[TrialResult]]]
    lengths: dict[int, Groups]

    @property
    def methods(self) -> dict[str, StudyMethod]:
        """Key -> method, for the methods that have results in `groups`."""
        with_results = {key for _, key in self.groups}
        return {key: method for key, method in self.plan.methods.items() if key in with_results}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The plan's pairs of methods that have results in `groups`."""
        return [pair for pair in self.plan.pairs if self.methods.keys() >= {*pair}]

    def at_length(self, length: int) -> "Results":
        """Return the results at one length."""
        return self._replace(groups=self.lengths[length])


def select_results(plan: Plan, groups: Groups, lengths: dict[int, Groups], sweeps: dict | None = None) -> Results:
    """Return results at the longest length, without lengths at which a method has too few seeds.

    Args:
        groups: The results of all methods, used if no length has enough seeds.
    """
    lengths = {length: at_length for length, at_length in lengths.items() if enough_seeds(plan, at_length)}
    if lengths:
        plan = plan.with_lengths({length: plan.lengths[length] for length in lengths})
        groups = lengths[plan.length]
    return Results(plan, groups, sweeps or {}, lengths)


def enough_seeds(plan: Plan, groups: Groups) -> bool:
    """Return whether each method has two finished seeds. Pixels need a single run."""
    return all(len(runs) > (plan.methods[key].stage1 in TRAINS_NETWORK) for (_, key), runs in groups.items())


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
    groups = _no_results(plan, None)
    lengths = {length: _no_results(plan, length) for length in plan.lengths}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row["sweep"]:  # pixels belong to all lengths
                    length = row.get("length")
                    for at_length in [lengths[int(length)]] if length else [groups, *lengths.values()]:
                        at_length[float(row["imbalance"]), row["method"]].append(_from_row(row))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{table}: not the table of {plan.title} ({type(error).__name__}: {error})") from None
    return select_results(plan, groups, lengths)


def _no_results(plan: Plan, length: int | None) -> Groups:
    return {(rho, method.key): [] for rho in plan.imbalances for method in plan.methods_at(length)}


def _from_row(row: dict[str, str]) -> TrialResult:
    texts = {"method", "head", "device"}
    numbers = {name: float(text) if text else None for name, text in row.items() if name not in texts}
    entry = {name: numbers[name] for name in SHOTS} | {"acc1": numbers["all"], "val_balanced": numbers["val"]}
    measures = {name: numbers[name] for name in GEOMETRY_MEASURES}
    about, seconds = {"args": {"device": row.get("device") or ""}}, numbers["seconds"]
    stage = Stage(Path(), about, [{"seconds": seconds, "val": measures}]) if seconds else None
    return TrialResult(int(numbers["seed"]), {"selected": entry}, stage, None)


def csv_table(results: Results) -> str:
    """Return the CSV table with one row per trial."""
    numbers = [*SHOTS, "all", "val", *GEOMETRY_MEASURES, "seconds"]
    rows = [["imbalance", "method", "sweep", "seed", "head", *numbers, "length", "device"]]
    cells = {}
    for length, groups in (results.lengths or {"": results.groups}).items():
        trained = {key: results.plan.methods[key].stage1 in TRAINS_NETWORK for _, key in groups}
        cells |= {(rho, key, "", length if trained[key] else ""): runs for (rho, key), runs in groups.items()}
    for sweep in results.plan.sweeps:
        for (key, value), runs in results.sweeps[sweep.key].items():
            cells[sweep.imbalance, key, f"{sweep.flag.lstrip('-')} {value}", sweep.length or ""] = runs
    for (*cell, length), runs in cells.items():
        for run in runs:
            selected = run.heads["selected"]
            head = best_head(run.heads["heads"])
            numbers = [
                *accuracy([run])[0],
                selected["val_balanced"],
                *(run.measure(m) for m in GEOMETRY_MEASURES),
            ]
            formatted = ["" if n is None or np.isnan(n) else f"{n:.4g}" for n in numbers]
            rows.append([*cell, run.seed, head, *formatted, f"{run.seconds:.0f}", length, run.device])
    return format_csv(rows)


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


def best_rate(accuracies: dict[str, float]) -> str:
    """Return the rate with the best mean accuracy over itself and its two neighbours in the grid.

    The mean is used because the noise of one run exceeds the difference between neighbours. The first and the last rate
    have only one neighbour and are never selected. Of two rates, the better one is selected. Of equal rates, the first
    one is selected.
    """
    rates, values = [*accuracies], [*accuracies.values()]
    if len(rates) < 3:
        return max(rates, key=accuracies.get)
    means = {
        rate: sum(values[index - 1 : index + 2]) / 3 for index, rate in enumerate(rates) if 0 < index < len(rates) - 1
    }
    return max(means, key=means.get)
