"""Tables and sentences of a study's page; all numbers come from run folders."""

from itertools import product

import numpy as np

from examples.results import reading
from examples.results.plan import VIEWS, Method, Sweep
from examples.results.reading import Found, Results
from utils.measure.metrics import shots
from utils.measure.monitor import SPREAD
from utils.measure.results import SHOTS, markdown, percent
from utils.report.trials import mean_and_std, paired_difference, with_interval

MEASURES = {name: label.split(" (")[0] for name, label in SPREAD.items()}


def of_way(results: Results, way: str) -> list[Method]:
    """The methods of one way, in the plan's order."""
    return [method for method in results.plan.methods.values() if method.way == way]


def summary(results: Results) -> str:
    """A row a method: over all classes, over few in brackets, at each imbalance; then what a run costs, the median."""
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
    """A method's runs of the seeds that all methods have at an imbalance; of pixels, which have no seed, the one."""
    trained = [key for key, other in results.plan.methods.items() if other.way in VIEWS]
    most = min(len(results.groups[imbalance, key]) for key in trained)
    return results.groups[imbalance, method.key][:most]


def all_and_few(runs: list[Found], head: str | None = None) -> str:
    """`84.21 ± 0.40 (88.1)`; of one run without a spread, and without few where no class has so few images."""
    values = reading.accuracy(runs, head)
    over_all = mean_and_std(values[:, -1]) if len(runs) > 1 else f"{values[0, -1]:.2f}"
    few_shot = values[:, -2].mean()
    return over_all if np.isnan(few_shot) else f"{over_all} ({few_shot:.1f})"


def measured(runs: list[Found], name: str) -> np.ndarray:
    """(trials,), nan where a run has no such measure."""
    return np.array([run.measure(name) for run in runs], dtype=float)


def best(results: Results, imbalance: float, way: str) -> Method | None:
    """The method of a way whose runs are best on validation, in the mean."""
    methods = of_way(results, way)

    def on_validation(method: Method) -> float:
        return np.mean([run.heads["selected"]["val_balanced"] for run in common(results, imbalance, method)])

    return max(methods, key=on_validation, default=None)


def verdict(results: Results) -> list[str]:
    """What the study says, a sentence at a time, whoever wins."""
    hardest_first = sorted(results.plan.imbalances, reverse=True)
    found = [best_rows(results, rho) for rho in hardest_first]
    return [*filter(None, found), *contrastive_pairs(results, hardest_first)]


def best_rows(results: Results, rho: float) -> str:
    """The best contrastive method beside the best of cross-entropy, and beside pixels; "" where one is missing."""
    contrast, entropy = (best(results, rho, way) for way in ("contrast", "cross-entropy"))
    if not contrast or not entropy:
        return ""
    of_test = {method.key: all_and_few(common(results, rho, method)) for method in results.plan.methods.values()}
    text = (
        f"ρ = {rho:g}: of the contrastive methods validation chooses {contrast.title}, {of_test[contrast.key]} on "
        f"test; of those by cross-entropy {entropy.title}, {of_test[entropy.key]}. The first minus the second: "
        f"{told(reading.pair(results, rho, (contrast.key, entropy.key))[:, -1])}."
    )
    floor = next(iter(of_way(results, "pixels")), None)
    return f"{text} {floor.title.capitalize()}: {of_test[floor.key]}." if floor else text


def contrastive_pairs(results: Results, imbalances: list[float]) -> list[str]:
    """Of each pair of two contrastive methods a sentence: over all and over few, at each imbalance."""
    methods, sentences = results.plan.methods, []
    for pair in results.plan.pairs:
        one, other = (methods[key] for key in pair)
        if one.way == other.way == "contrast":
            parts = []
            for rho in imbalances:
                few_shot, over_all = reading.pair(results, rho, pair).T[2:]
                of_few = "" if np.isnan(few_shot).any() else f"; few {told(few_shot)}"
                parts.append(f"ρ = {rho:g} {told(over_all)}{of_few}")
            sentences.append(f"{one.title} − {other.title}: {'. '.join(parts)}.")
    return sentences


def told(values: np.ndarray) -> str:
    """Mean of (n,) paired differences, its interval, and what that says."""
    _, low, high = paired_difference(values)
    word = "ahead" if low > 0 else "behind" if high < 0 else "not told apart"
    return f"{with_interval(values)}, {word}"


def differences(results: Results) -> str:
    """A row a pair and imbalance: many, medium, few, all."""
    rows, titles = [], {method.key: method.title for method in results.plan.methods.values()}
    for one, other in results.plan.pairs:
        for rho in results.plan.imbalances:
            values = reading.pair(results, rho, (one, other))
            if len(values) > 1:
                name = f"{titles[one]} − {titles[other]}"
                rows.append([name, f"{rho:g}", str(len(values)), *map(with_interval, values.T)])
    return markdown(["difference", "ρ", "seeds", *SHOTS, "all"], rows)


def head_table(results: Results, imbalance: float) -> str:
    """Each head that some method has, on every method; the last row is what validation chose, a run at a time."""
    groups = {method.title: common(results, imbalance, method) for method in results.plan.methods.values()}
    titles = dict.fromkeys(title for runs in groups.values() for title in runs[0].heads["heads"])
    rows = []
    for title in titles:
        cells = [all_and_few(runs, title) if has(runs, title) else "–" for runs in groups.values()]
        rows.append([title, *cells])
    rows.append(["chosen by validation", *(all_and_few(runs) for runs in groups.values())])
    return markdown(["head", *groups], rows)


def has(runs: list[Found], title: str) -> bool:
    """Whether all runs have a head: a fit that did not arrive is left out."""
    return all(title in run.heads["heads"] for run in runs)


def feature_table(results: Results) -> str:
    """Measures of the validation features, by the last epoch of stage 1; and how far TSC's targets were reached."""
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
    """Whether some class has few training images there."""
    runs = next(runs for (rho, _), runs in results.groups.items() if rho == imbalance)
    return bool(few(runs[0]).any())


def few(run: Found) -> np.ndarray:
    """(C,) bool."""
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
    """Each trial, over all classes."""
    rows = []
    for rho in results.plan.imbalances:
        for method in results.plan.methods.values():
            runs = results.groups[rho, method.key]
            values = " ".join(percent(value) for value in reading.accuracy(runs)[:, -1])
            rows.append([f"{rho:g}", method.title, rate_of(runs), values])
    return markdown(["ρ", "method", "learning rate", "seeds 0, 1, ..."], rows, words=2)


def rate_of(runs: list[Found]) -> str:
    return "–" if runs[0].stage is None else f"{runs[0].stage.args['lr']:g}"
