"""Tables and sentences of a study's page. All numbers come from its runs."""

from collections import Counter
from itertools import product

import numpy as np

from examples.results import reading
from examples.results.plan import TRAINS_NETWORK, StudyMethod, Sweep
from examples.results.reading import Results, TrialResult
from utils.measure.metrics import shots
from utils.measure.monitor import GEOMETRY_MEASURES
from utils.measure.results import SHOTS, format_markdown_table, format_percent
from utils.report.trials import format_interval, format_mean_and_std, paired_difference

MEASURES = {name: label.split(" (")[0] for name, label in GEOMETRY_MEASURES.items()}


def methods_of_stage1(results: Results, stage1: str) -> list[StudyMethod]:
    """Return the methods with a value of stage1, in the order of the plan."""
    return [method for method in results.methods.values() if method.stage1 == stage1]


def summary(results: Results) -> str:
    """Return the summary table, one row per method.

    The columns are accuracy over all (few-shot) classes at each imbalance, U at the largest imbalance, and the median
    minutes of training per run. If runs have several kinds of devices, only those of the most frequent kind count.
    """
    plan, rows, largest = results.plan, [], max(results.plan.imbalances)
    devices = Counter(run.device for runs in results.groups.values() for run in runs if run.stage)
    device = max(devices, key=devices.get, default="")
    for method in results.methods.values():
        groups = {rho: common_runs(results, rho, method) for rho in plan.imbalances}
        cells = map(all_and_few, groups.values())
        uniformity = measured_values(groups[largest], "uniformity")
        seconds = [run.seconds for runs in groups.values() for run in runs if run.stage and run.device == device]
        rows.append([method.title, *cells, "–" if np.isnan(uniformity).any() else f"{uniformity.mean():.2f}"])
        rows[-1].append(f"{np.median(seconds) / 60:.1f}" if seconds else "–")
    columns = [f"ρ = {rho:g} ({num_common_seeds(results, rho)} seeds)" for rho in plan.imbalances]
    minutes = f"minutes per run ({device} only)" if len(devices) > 1 else "minutes per run"
    header = ["method", *columns, f"U at ρ = {largest:g}", minutes]
    return format_markdown_table(header, rows)


def common_runs(results: Results, imbalance: float, method: StudyMethod) -> list[TrialResult]:
    """Return the runs of a method for the seeds that all methods have at an imbalance. Pixels have a single run."""
    return results.groups[imbalance, method.key][: num_common_seeds(results, imbalance)]


def num_common_seeds(results: Results, imbalance: float) -> int:
    """Return the number of seeds that all trained methods have at an imbalance."""
    trained = [key for key, method in results.methods.items() if method.stage1 in TRAINS_NETWORK]
    return min(len(results.groups[imbalance, key]) for key in trained)


def all_and_few(runs: list[TrialResult], head: str | None = None) -> str:
    """Return accuracy over all and few-shot classes, as in `84.21 ± 0.40 (88.1)`.

    A single run has no standard deviation. The parentheses are omitted if no class is few-shot.
    """
    values = reading.accuracy(runs, head)
    all_classes = format_mean_and_std(values[:, -1]) if len(runs) > 1 else f"{values[0, -1]:.2f}"
    few_shot = values[:, -2].mean()
    return all_classes if np.isnan(few_shot) else f"{all_classes} ({few_shot:.1f})"


def measured_values(runs: list[TrialResult], name: str) -> np.ndarray:
    """Return a measure of each run, (trials,). nan: the run does not have it."""
    return np.array([run.measure(name) for run in runs], dtype=float)


def best_method(results: Results, imbalance: float, stage1: str) -> StudyMethod | None:
    """Return the method with the best mean validation accuracy among those with a value of stage1, or None."""
    methods = methods_of_stage1(results, stage1)

    def validation_accuracy(method: StudyMethod) -> float:
        return np.mean([run.heads["selected"]["val_balanced"] for run in common_runs(results, imbalance, method)])

    return max(methods, key=validation_accuracy, default=None)


def sentences(results: Results) -> list[str]:
    """Return one sentence per pair of methods that are best on validation, largest imbalance first."""
    return [_best_pair_sentence(results, pair, imbalances) for pair, imbalances in best_pairs(results).items()]


def best_pairs(results: Results) -> dict[tuple[str, str], list[float]]:
    """Map each pair of `best_pair` to the imbalances at which it is best. Empty if the plan lacks either kind."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for rho in sorted(results.plan.imbalances, reverse=True):
        if pair := best_pair(results, rho):
            pairs.setdefault(pair, []).append(rho)
    return pairs


def best_pair(results: Results, imbalance: float) -> tuple[str, str] | None:
    """Return the keys of the best contrastive and cross-entropy method on validation. None: a kind has no method."""
    best = [best_method(results, imbalance, stage1) for stage1 in ("contrast", "cross-entropy")]
    return (best[0].key, best[1].key) if all(best) else None


def _best_pair_sentence(results: Results, pair: tuple[str, str], imbalances: list[float]) -> str:
    first, other = (results.plan.methods[key].title for key in pair)
    outcomes: dict[str, list[float]] = {}
    for rho in imbalances:
        outcomes.setdefault(outcome(overall_difference(results, rho, pair)), []).append(rho)
    parts = [f"{text} at ρ = {listed(where)}" for text, where in outcomes.items()]
    return (
        f"By validation accuracy (the table shows test accuracy), {first} is the best contrastive method and {other} "
        f"is the best cross-entropy method at ρ = {listed(imbalances)}. On the test set, compared with {other}, "
        f"{first} is {', and '.join(parts)}."
    )


def listed(parts: list[str] | list[float]) -> str:
    """Join texts or numbers as in `100, 50 and 10`."""
    *others, last = (f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
    return f"{', '.join(others)} and {last}" if others else last


def outcome(difference: np.ndarray) -> str:
    """Return in words what the confidence interval of (n,) paired differences means for the first method."""
    _, low, high = paired_difference(difference)
    return "significantly better" if low > 0 else "significantly worse" if high < 0 else "not significantly different"


def overall_difference(results: Results, rho: float, pair: tuple[str, str]) -> np.ndarray:
    """Return the paired differences of two methods over all classes, (trials,)."""
    return reading.paired_differences(results, rho, pair)[:, -1]


def difference_summary(results: Results) -> str:
    """Return a table of paired differences over all classes: best methods first, then pairs of contrastive methods."""
    plan, rows = results.plan, []
    imbalances = sorted(plan.imbalances, reverse=True)
    contrastive = {method.key for method in methods_of_stage1(results, "contrast")}
    pairs = [*best_pairs(results), *(pair for pair in results.pairs if contrastive.issuperset(pair))]
    for pair in dict.fromkeys(pairs):
        cells = [format_difference(overall_difference(results, rho, pair)) for rho in imbalances]
        rows.append([" − ".join(plan.methods[key].title for key in pair), *cells])
    return format_markdown_table(["difference", *(f"ρ = {rho:g}" for rho in imbalances)], rows)


def format_difference(difference: np.ndarray) -> str:
    """Return mean, interval and number of (n,) paired differences, as in `**−1.0** (−1.8 to −0.1; 5 seeds)`.

    The mean is bold if the interval does not contain 0.
    """
    if len(difference) < 2:
        return "–"
    mean, low, high = (f"{value:+.1f}".replace("-", "−") for value in paired_difference(difference))
    mean = mean if outcome(difference) == outcome(np.zeros(2)) else f"**{mean}**"
    return f"{mean} ({low} to {high}; {len(difference)} seeds)"


def differences(results: Results) -> str:
    """Return a table of paired differences over many-, medium-, few-shot and all classes, per pair and imbalance."""
    rows, titles = [], {method.key: method.title for method in results.methods.values()}
    for first, other in results.pairs:
        for rho in results.plan.imbalances:
            values = reading.paired_differences(results, rho, (first, other))
            if len(values) > 1:
                name = f"{titles[first]} − {titles[other]}"
                rows.append([name, f"{rho:g}", str(len(values)), *map(format_interval, values.T)])
    return format_markdown_table(["difference", "ρ", "seeds", *SHOTS, "all"], rows)


def head_table(results: Results, imbalance: float) -> str:
    """Return a table of accuracies with one row per head and one column per method.

    The last row uses the head that is selected in each run.
    """
    groups = {method.title: common_runs(results, imbalance, method) for method in results.methods.values()}
    titles = dict.fromkeys(title for runs in groups.values() for title in runs[0].heads["heads"])
    rows = []
    for title in titles:
        cells = [all_and_few(runs, title) if has_head(runs, title) else "–" for runs in groups.values()]
        rows.append([title, *cells])
    rows.append(["selected on validation", *(all_and_few(runs) for runs in groups.values())])
    return format_markdown_table(["head", *groups], rows)


def has_head(runs: list[TrialResult], title: str) -> bool:
    """Return whether all runs have a head. Heads whose fit did not converge are missing."""
    return all(title in run.heads["heads"] for run in runs)


def feature_table(results: Results) -> str:
    """Return a table of measures of the validation features after stage 1, including how closely they match targets."""
    rows = []
    for rho in results.plan.imbalances:
        for method in methods_of_stage1(results, "contrast"):
            runs = common_runs(results, rho, method)
            row = [f"{rho:g}", method.title, *(format_mean_and_std(measured_values(runs, name)) for name in MEASURES)]
            if runs[0].target_match:
                cosines, nearest = (
                    np.array(values) for values in zip(*(run.target_match for run in runs), strict=True)
                )
                is_few_shot = few_shot_mask(runs[0])
                row += [
                    format_mean_and_std(cosines.mean(1)),
                    format_mean_and_std(cosines[:, is_few_shot].mean(1)) if is_few_shot.any() else "–",
                ]
                row.append(format_mean_and_std(nearest.mean(1)))
            rows.append(row + ["–"] * (len(MEASURES) + 5 - len(row)))
    header = ["ρ", "method", *MEASURES.values(), "cosine to the target", "few-shot cosine", "nearest target, %"]
    return format_markdown_table(header, rows, text_columns=2)


def has_few_shot(results: Results, imbalance: float) -> bool:
    """Return whether some class is few-shot at this imbalance."""
    runs = next(runs for (rho, _), runs in results.groups.items() if rho == imbalance)
    return runs[0].heads["selected"]["few"] is not None


def few_shot_mask(run: TrialResult) -> np.ndarray:
    """Return a (C,) mask of the few-shot classes."""
    return shots(np.array(run.heads["train_counts"]))["few"]


def sweep_table(results: Results, sweep: Sweep) -> str:
    """Return a table with one row per method and value of a sweep."""
    rows = []
    for method, (value, label) in product(sweep.methods, zip(sweep.values, sweep.labels, strict=True)):
        if runs := results.sweeps[sweep.key][method, value]:
            target_match = [run.target_match.nearest.mean() for run in runs if run.target_match]
            nearest = f"{np.mean(target_match):.1f}" if target_match else "–"
            row = [results.plan.methods[method].title, label, str(len(runs)), all_and_few(runs)]
            uniformity = measured_values(runs, "uniformity")
            rows.append([*row, "–" if np.isnan(uniformity).any() else f"{uniformity.mean():.2f}", nearest])
    return format_markdown_table(
        ["method", sweep.axis, "seeds", "all (few)", "U", "nearest target, %"], rows, text_columns=2
    )


def seed_table(results: Results) -> str:
    """Return a table of the accuracy over all classes of each seed."""
    rows = []
    for rho in results.plan.imbalances:
        for method in results.methods.values():
            runs = results.groups[rho, method.key]
            values = " ".join(format_percent(value) for value in reading.accuracy(runs)[:, -1])
            rows.append([f"{rho:g}", method.title, learning_rate(runs), values])
    return format_markdown_table(["ρ", "method", "learning rate", "seeds 0, 1, ..."], rows, text_columns=2)


def learning_rate(runs: list[TrialResult]) -> str:
    """Return the learning rate of some runs, or a dash if they train no network."""
    return "–" if runs[0].stage is None else f"{runs[0].stage.args['lr']:g}"
