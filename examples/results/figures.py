"""Figures of a study's page."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from examples.results import reading, tables
from examples.results.plan import VIEWS, Sweep
from examples.results.reading import Found, Results
from utils.report.style import LIGHT
from utils.report.trials import paired_difference

MARKS = "osD^v"


def colour_of(results: Results, key: str) -> str:
    """Return the colour of a method, the same in all figures. Methods that are not trained are grey."""
    trained = [method.key for method in results.plan.methods.values() if method.way in VIEWS]
    return LIGHT[trained.index(key) % len(LIGHT)] if key in trained else "0.6"


def save(figure: Figure, path: Path) -> None:
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # show a `$` in a title as it is
    figure.savefig(path, dpi=120)
    plt.close(figure)


def panels(count: int, height: float = 3.4, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def accuracy(results: Results) -> Figure:
    """Plot accuracy over all and over few-shot classes at each imbalance: one dot per seed, a line at the mean."""
    figure, axes = panels(2, 3.8, 5.2)
    methods, rhos = results.plan.methods.values(), results.plan.imbalances
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        for number, method in enumerate(methods):
            shift = 0.8 * ((number + 0.5) / len(methods) - 0.5)
            colour = colour_of(results, method.key)
            for place, rho in enumerate(rhos):
                values = reading.accuracy(tables.common(results, rho, method))[:, column]
                panel.scatter(np.full(len(values), place + shift), values, s=14, color=colour, alpha=0.6, linewidth=0)
                ends, label_of = (place + shift - 0.04, place + shift + 0.04), method.title if place == 0 else None
                panel.plot(ends, [values.mean()] * 2, color=colour, lw=2.5, label=label_of)
        panel.set_xticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        panel.set(xlabel="imbalance ρ", ylabel=f"test accuracy, {label}, %")
        shown = [place for place, rho in enumerate(rhos) if column == -1 or tables.has_few(results, rho)]
        panel.set_xlim(min(shown, default=0) - 0.6, max(shown, default=0) + 0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def differences(results: Results) -> Figure:
    """Plot the difference of each pair with its 95 % interval, over all and over few-shot classes."""
    figure, axes = panels(2, 1.2 + 0.32 * len(results.plan.pairs) * len(results.plan.imbalances), 5.2)
    titles = {method.key: method.title for method in results.plan.methods.values()}
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        names = []
        for number, pair in enumerate(results.plan.pairs):
            for rho in results.plan.imbalances:
                values = reading.pair(results, rho, pair)[:, column]
                if len(values) < 2 or np.isnan(values).any():
                    continue
                mean, low, high = paired_difference(values)
                colour = LIGHT[number % len(LIGHT)]  # one colour per pair
                panel.plot([low, high], [len(names)] * 2, color=colour, lw=2)
                panel.plot(mean, len(names), "o", color=colour)
                names.append(f"{titles[pair[0]]} − {titles[pair[1]]}, ρ = {rho:g}")
        panel.axvline(0, color="0.5", lw=1)
        panel.set_yticks(range(len(names)), names if panel is axes[0] else [""] * len(names))
        panel.invert_yaxis()
        panel.set(xlabel=f"points, {label}")
    return figure


def heads(results: Results, imbalance: float) -> Figure:
    """Plot the mean accuracy of each head, one marker per method."""
    figure, (panel,) = panels(1, 4, 8)
    methods = results.plan.methods.values()
    titles = list(dict.fromkeys(t for m in methods for t in results.groups[imbalance, m.key][0].heads["heads"]))
    for number, method in enumerate(methods):
        runs = tables.common(results, imbalance, method)
        there = [title for title in titles if tables.has(runs, title)]
        means = [reading.accuracy(runs, title)[:, -1].mean() for title in there]
        places = [titles.index(title) for title in there]
        colour = colour_of(results, method.key)
        panel.plot(places, means, MARKS[number % len(MARKS)], color=colour, label=method.title, alpha=0.8)
    panel.set_xticks(range(len(titles)), titles, rotation=35, ha="right")
    panel.set(ylabel=f"test accuracy, all, %, ρ = {imbalance:g}")
    panel.grid(axis="y", color="0.9")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def mechanism(results: Results, imbalance: float) -> Figure:
    """Plot for each class, largest first: cosine to its target, share nearest to its target, and accuracy."""
    figure, axes = panels(3)
    for number, method in enumerate(tables.of_way(results, "contrast")):
        runs, colour = tables.common(results, imbalance, method), colour_of(results, method.key)
        order = np.argsort(runs[0].heads["train_counts"])[::-1]
        style = {"color": colour, "marker": MARKS[number % len(MARKS)], "markersize": 4, "lw": 1, "label": method.title}
        if runs[0].reached:
            for panel, what in zip(axes, ("cosines", "nearest"), strict=False):
                panel.plot(np.mean([getattr(run.reached, what) for run in runs], axis=0)[order], **style)
        per_class = np.mean([run.heads["selected"]["per_class"] for run in runs], axis=0)
        axes[2].plot(per_class[order], **style)
    labels = "cosine of centre and target", "nearest target is its own, %", "test accuracy, %"
    for panel, label in zip(axes, labels, strict=True):
        panel.set(xlabel="class, most training images first", ylabel=label)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def sweeps(results: Results, shown: list[Sweep]) -> Figure:
    """Plot one column per sweep: accuracy over all and few-shot classes, and U; means over seeds, one dot per seed."""
    figure, axes = plt.subplots(3, len(shown), figsize=(3 * len(shown), 7), layout="constrained", squeeze=False)
    for column, sweep in zip(axes.T, shown, strict=True):
        for key in sweep.methods:
            title, colour = results.plan.methods[key].title, colour_of(results, key)
            there = {value: runs for value in sweep.values if (runs := results.sweeps[sweep.key][key, value])}
            for panel, values_of in zip(column, (_all, _few, _uniformity), strict=True):
                _line(panel, sweep, {value: values_of(runs) for value, runs in there.items()}, title, colour)
        column[-1].set_xlabel(sweep.axis)
    for row, label in zip(axes, ("all, %", "few, %", "uniformity U"), strict=True):
        row[0].set_ylabel(label)
    handles = {}
    for panel in axes[0]:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _all(runs: list[Found]) -> np.ndarray:
    return reading.accuracy(runs)[:, -1]


def _few(runs: list[Found]) -> np.ndarray:
    return reading.accuracy(runs)[:, -2]


def _uniformity(runs: list[Found]) -> np.ndarray:
    return tables.measured(runs, "uniformity")


def _line(panel: Axes, sweep: Sweep, values: dict[str, np.ndarray], title: str, colour: str) -> None:
    places = [sweep.values.index(value) for value in values]
    for place, of_seeds in zip(places, values.values(), strict=True):
        panel.scatter(np.full(len(of_seeds), place), of_seeds, s=12, color=colour, alpha=0.5, linewidth=0)
    panel.plot(places, [of_seeds.mean() for of_seeds in values.values()], color=colour, lw=1.5, label=title)
    panel.set_xticks(range(len(sweep.values)), sweep.labels)
    panel.spines[["top", "right"]].set_visible(False)
