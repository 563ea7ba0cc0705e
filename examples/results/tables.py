"""Tables and sentences of a study's page. All numbers come from run folders."""

from itertools import product

import numpy as np

from examples.results import reading
from examples.results.plan import VIEWS, Method, Sweep
from examples.results.reading import Found, Results
from utils.measure.metrics import shots
from utils.measure.monitor import SPREAD
from utils.measure.results import SHOTS, markdown, percent
from utils.report.trials import CONFIDENCE, mean_and_std, paired_difference, with_interval

MEASURES = {name: label.split(" (")[0] for name, label in SPREAD.items()}


def of_way(results: Results, way: str) -> list[Method]:
    """Return the methods of one way, in the plan's order."""
    return [method for method in results.plan.methods.values() if method.way == way]


def summary(results: Results) -> str:
    """Return one row per method: accuracy over all (few) classes at each imbalance, U, and median minutes per run."""
    plan, rows, most = results.plan, [], max(results.plan.imbalances)
    for method in plan.methods.values():
        groups = {rho: common(results, rho, method) for rho in plan.imbalances}
        cells = map(all_and_few, groups.values())
        uniformity = measured(groups[most], "uniformity")
        minutes = np.median([run.seconds for runs in groups.values() for run in runs]) / 60
        rows.append([method.title, *cells, "–" if np.isnan(uniformity).any() else f"{uniformity.mean():.2f}"])
        rows[-1].append(f"{minutes:.1f}" if minutes else "–")
    header = ["method", *(f"ρ = {rho:g}" for rho in plan.imbalances), f"U at {most:g}", "minutes a run"]
    return markdown(header, rows)


def common(results: Results, imbalance: float, method: Method) -> list[Found]:
    """Return a method's runs of the seeds that all methods have at an imbalance. Pixels have a single run."""
    trained = [key for key, other in results.plan.methods.items() if other.way in VIEWS]
    most = min(len(results.groups[imbalance, key]) for key in trained)
    return results.groups[imbalance, method.key][:most]


def all_and_few(runs: list[Found], head: str | None = None) -> str:
    """Return `84.21 ± 0.40 (88.1)`: accuracy over all and few-shot classes.

    A single run has no spread. The brackets are omitted if no class is few-shot.
    """
    values = reading.accuracy(runs, head)
    over_all = mean_and_std(values[:, -1]) if len(runs) > 1 else f"{values[0, -1]:.2f}"
    few_shot = values[:, -2].mean()
    return over_all if np.isnan(few_shot) else f"{over_all} ({few_shot:.1f})"


def measured(runs: list[Found], name: str) -> np.ndarray:
    """Return a measure of each run, (trials,), nan if a run does not have it."""
    return np.array([run.measure(name) for run in runs], dtype=float)


def best(results: Results, imbalance: float, way: str) -> Method | None:
    """Return the method of a way with the best mean validation accuracy."""
    methods = of_way(results, way)

    def on_validation(method: Method) -> float:
        return np.mean([run.heads["selected"]["val_balanced"] for run in common(results, imbalance, method)])

    return max(methods, key=on_validation, default=None)


def verdict(results: Results) -> list[str]:
    """What the study found, one sentence each, the hardest imbalance first."""
    imbalances = sorted(results.plan.imbalances, reverse=True)
    sentences = [best_methods(results, rho) for rho in imbalances]
    sentences += [contrastive_pair(results, pair, imbalances) for pair in results.plan.pairs]
    return [sentence for sentence in sentences if sentence]


def best_methods(results: Results, rho: float) -> str:
    """Compare the best contrastive method with the best cross-entropy method; "" if the plan lacks one of them."""
    contrast, entropy = (best(results, rho, way) for way in ("contrast", "cross-entropy"))
    if not contrast or not entropy:
        return ""
    one, other = (reading.accuracy(common(results, rho, method))[:, -1].mean() for method in (contrast, entropy))
    difference = reading.pair(results, rho, (contrast.key, entropy.key))[:, -1]
    return (
        f"At ρ = {rho:g}, validation selects {contrast.title} among the contrastive methods ({one:.1f} % on test) and "
        f"{entropy.title} among the cross-entropy methods ({other:.1f} %). The contrastive method is "
        f"{outcome(difference)} ({in_points(difference)})."
    )


def contrastive_pair(results: Results, pair: tuple[str, str], imbalances: list[float]) -> str:
    """Compare two contrastive methods at each imbalance; "" for other pairs."""
    one, other = (results.plan.methods[key] for key in pair)
    if not one.way == other.way == "contrast":
        return ""
    parts = []
    for rho in imbalances:
        difference = reading.pair(results, rho, pair)[:, -1]
        parts.append(f"{outcome(difference)} at ρ = {rho:g} ({in_points(difference)})")
    return f"{one.title}, compared with {other.title}: {'; '.join(parts)}."


def outcome(difference: np.ndarray) -> str:
    """Say in words what the interval of (n,) paired differences means for the first method."""
    _, low, high = paired_difference(difference)
    return "significantly better" if low > 0 else "significantly worse" if high < 0 else "not significantly different"


def in_points(difference: np.ndarray) -> str:
    """`−1.0 points, 95 % CI −1.8 to −0.1` of (n,) paired differences."""
    mean, low, high = (f"{value:+.1f}".replace("-", "−") for value in paired_difference(difference))
    return f"{mean} points, {CONFIDENCE:.0%} CI {low} to {high}".replace("%", " %")


def differences(results: Results) -> str:
    """Return one row per pair and imbalance: paired differences over many, medium, few and all classes."""
    rows, titles = [], {method.key: method.title for method in results.plan.methods.values()}
    for one, other in results.plan.pairs:
        for rho in results.plan.imbalances:
            values = reading.pair(results, rho, (one, other))
            if len(values) > 1:
                name = f"{titles[one]} − {titles[other]}"
                rows.append([name, f"{rho:g}", str(len(values)), *map(with_interval, values.T)])
    return markdown(["difference", "ρ", "seeds", *SHOTS, "all"], rows)


def head_table(results: Results, imbalance: float) -> str:
    """Return one row per head and one column per method. The last row uses the head selected in each run."""
    groups = {method.title: common(results, imbalance, method) for method in results.plan.methods.values()}
    titles = dict.fromkeys(title for runs in groups.values() for title in runs[0].heads["heads"])
    rows = []
    for title in titles:
        cells = [all_and_few(runs, title) if has(runs, title) else "–" for runs in groups.values()]
        rows.append([title, *cells])
    rows.append(["chosen by validation", *(all_and_few(runs) for runs in groups.values())])
    return markdown(["head", *groups], rows)


def has(runs: list[Found], title: str) -> bool:
    """Return whether all runs have a head; fits that did not converge are missing."""
    return all(title in run.heads["heads"] for run in runs)


def feature_table(results: Results) -> str:
    """Return measures of the validation features after stage 1, and how closely TSC's targets were reached."""
    rows = []
    for rho in results.plan.imbalances:
        for method in of_way(results, "contrast"):
            runs = common(results, rho, method)
            row = [f"{rho:g}", method.title, *(mean_and_std(measured(runs, name)) for name in MEASURES)]
            if runs[0].reached:
                cosines, nearest = (np.array(values) for values in zip(*(run.reached for run in runs), strict=True))
                rare = few(runs[0])
                row += [mean_and_std(cosines.mean(1)), mean_and_std(cosines[:, rare].mean(1)) if rare.any() else "–"]
                row.append(mean_and_std(nearest.mean(1)))
            rows.append(row + ["–"] * (len(MEASURES) + 5 - len(row)))
    header = ["ρ", "method", *MEASURES.values(), "cosine to the target", "of few", "nearest target, %"]
    return markdown(header, rows, words=2)


def has_few(results: Results, imbalance: float) -> bool:
    """Return whether some class is few-shot at this imbalance."""
    runs = next(runs for (rho, _), runs in results.groups.items() if rho == imbalance)
    return bool(few(runs[0]).any())


def few(run: Found) -> np.ndarray:
    """Return which classes are few-shot, (C,) bool."""
    return shots(np.array(run.heads["train_counts"]))["few"]


def sweep_table(results: Results, sweep: Sweep) -> str:
    rows = []
    for method, (value, label) in product(sweep.methods, zip(sweep.values, sweep.labels, strict=True)):
        if runs := results.sweeps[sweep.key][method, value]:
            reached = [run.reached.nearest.mean() for run in runs if run.reached]
            nearest = f"{np.mean(reached):.1f}" if reached else "–"
            row = [results.plan.methods[method].title, label, str(len(runs)), all_and_few(runs)]
            rows.append([*row, f"{measured(runs, 'uniformity').mean():.2f}", nearest])
    return markdown(["method", sweep.axis, "seeds", "all (few)", "U", "nearest target, %"], rows, words=2)


def seed_table(results: Results) -> str:
    """Return the accuracy over all classes of each seed."""
    rows = []
    for rho in results.plan.imbalances:
        for method in results.plan.methods.values():
            runs = results.groups[rho, method.key]
            values = " ".join(percent(value) for value in reading.accuracy(runs)[:, -1])
            rows.append([f"{rho:g}", method.title, rate_of(runs), values])
    return markdown(["ρ", "method", "learning rate", "seeds 0, 1, ..."], rows, words=2)


def rate_of(runs: list[Found]) -> str:
    return "–" if runs[0].stage is None else f"{runs[0].stage.args['lr']:g}"
