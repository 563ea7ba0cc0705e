"""Figures for the page of a study."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from examples.results import reading, tables
from examples.results.plan import TRAINS_NETWORK, Sweep
from examples.results.reading import Results, TrialResult
from utils.report.style import LIGHT, save_figure
from utils.report.trials import paired_difference

MARKS = "osD^v"
METHOD_COLOURS = (*LIGHT, "#7b3fa0", "#a8323e", "#2f9fd8")


def method_colour(results: Results, key: str) -> str:
    """Return the colour of a method, which is the same in all figures. Methods without training are grey."""
    trained = [method.key for method in results.plan.methods.values() if method.stage1 in TRAINS_NETWORK]
    return METHOD_COLOURS[trained.index(key) % len(METHOD_COLOURS)] if key in trained else "0.6"


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file and close it."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # show `$` in a title literally
    save_figure(figure, path, dpi=120)


def panels(count: int, height: float = 3.4, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes side by side, each of the given size in inches."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def accuracy(results: Results) -> Figure:
    """Plot accuracy over all and over few-shot classes at each imbalance, one dot per seed and a line at the mean."""
    figure, axes = panels(2, 3.8, 5.2)
    methods, rhos = results.methods.values(), results.plan.imbalances
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        for number, method in enumerate(methods):
            shift = 0.8 * ((number + 0.5) / len(methods) - 0.5)
            colour = method_colour(results, method.key)
            for position, rho in enumerate(rhos):
                values = reading.accuracy(tables.common_runs(results, rho, method))[:, column]
                x, label_once = position + shift, method.title if position == 0 else None
                panel.scatter(np.full(len(values), x), values, s=14, color=colour, alpha=0.6, linewidth=0)
                panel.plot([x - 0.04, x + 0.04], [values.mean()] * 2, color=colour, lw=2.5, label=label_once)
        panel.set_xticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        panel.set(xlabel="imbalance ρ", ylabel=f"test accuracy, {label}, %")
        positions = [position for position, rho in enumerate(rhos) if column == -1 or tables.has_few_shot(results, rho)]
        panel.set_xlim(min(positions, default=0) - 0.6, max(positions, default=0) + 0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def differences(results: Results) -> Figure:
    """Plot the paired difference of each pair with its confidence interval, over all and over few-shot classes."""
    rows = [(pair, rho) for pair in results.pairs for rho in results.plan.imbalances]
    figure, axes = panels(2, 1.2 + 0.32 * len(rows), 5.2)
    titles = {method.key: method.title for method in results.methods.values()}
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        for row, (pair, rho) in enumerate(rows):
            values = reading.paired_differences(results, rho, pair)[:, column]
            if len(values) < 2 or np.isnan(values).any():
                reason = " no few-shot class" if label == "few" and np.isnan(values).all() else " no interval"
                panel.text(0, row, reason, color="0.5", va="center", fontsize=8)
                continue
            mean, low, high = paired_difference(values)
            colour = LIGHT[results.plan.pairs.index(pair) % len(LIGHT)]  # one colour per pair
            panel.plot([low, high], [row] * 2, color=colour, lw=2)
            panel.plot(mean, row, "o", color=colour)
        panel.axvline(0, color="0.5", lw=1)
        names = [f"{titles[first]} − {titles[second]}, ρ = {rho:g}" for (first, second), rho in rows]
        panel.set_yticks(range(len(rows)), names if panel is axes[0] else [""] * len(rows))
        panel.set(xlabel=f"difference in points, {label}", ylim=(len(rows) - 0.5, -0.5))  # the same rows in both panels
    return figure


def heads(results: Results, imbalance: float) -> Figure:
    """Plot the mean accuracy of each head, one marker per method."""
    figure, (panel,) = panels(1, 4, 8)
    methods = results.methods.values()
    titles = list(
        dict.fromkeys(title for method in methods for title in results.groups[imbalance, method.key][0].heads["heads"])
    )
    for number, method in enumerate(methods):
        runs = tables.common_runs(results, imbalance, method)
        available = [title for title in titles if tables.has_head(runs, title)]
        means = [reading.accuracy(runs, title)[:, -1].mean() for title in available]
        positions = [titles.index(title) for title in available]
        colour = method_colour(results, method.key)
        panel.plot(positions, means, MARKS[number % len(MARKS)], color=colour, label=method.title, alpha=0.8)
    panel.set_xticks(range(len(titles)), titles, rotation=35, ha="right")
    panel.set(ylabel=f"test accuracy, all, %, ρ = {imbalance:g}")
    _exclude_outliers(panel)
    panel.grid(axis="y", color="0.9")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _exclude_outliers(panel: Axes) -> None:
    """Fit the y axis to all points except far lower ones, whose values are written at the bottom edge."""
    points = np.array([point for line in panel.get_lines() for point in line.get_xydata()])
    low, high = np.quantile(points[:, 1], 0.25), points[:, 1].max()
    bottom = low - 1.5 * (high - low)  # as the whiskers of a box plot
    shown = points[:, 1] >= bottom
    if shown.all():
        return
    lowest = points[shown, 1].min()
    panel.set_ylim(lowest - 0.12 * (high - lowest), high + 0.05 * (high - lowest))
    for x in np.unique(points[~shown, 0]):
        values = ", ".join(f"{y:.1f}" for y in np.sort(points[~shown & (points[:, 0] == x), 1])[::-1])
        panel.annotate(f"↓ {values}", (x, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)


def mechanism(results: Results, imbalance: float) -> Figure:
    """Plot three values per class, largest class first.

    The values are the cosine of class centre and target, the share of images that are nearest to their own target, and
    the test accuracy.
    """
    figure, axes = panels(3)
    for number, method in enumerate(tables.methods_of_stage1(results, "contrast")):
        runs, colour = tables.common_runs(results, imbalance, method), method_colour(results, method.key)
        order = np.argsort(runs[0].heads["train_counts"])[::-1]
        style = {"color": colour, "marker": MARKS[number % len(MARKS)], "markersize": 4, "lw": 1, "label": method.title}
        if runs[0].target_match:
            for panel, field in zip(axes, ("cosines", "nearest"), strict=False):
                panel.plot(np.mean([getattr(run.target_match, field) for run in runs], axis=0)[order], **style)
        per_class = np.mean([run.heads["selected"]["per_class"] for run in runs], axis=0)
        axes[2].plot(per_class[order], **style)
    labels = "cosine of centre and target", "nearest to own target, %", "test accuracy, %"
    for panel, label in zip(axes, labels, strict=True):
        panel.set(xlabel="class, largest first", ylabel=label)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def sweeps(results: Results, shown_sweeps: list[Sweep]) -> Figure:
    """Plot one column per sweep: accuracy over all and over few-shot classes, and U.

    Each value has one dot per seed, and a line connects the means.
    """
    figure, axes = plt.subplots(
        3, len(shown_sweeps), figsize=(3 * len(shown_sweeps), 7), layout="constrained", squeeze=False
    )
    for column, sweep in zip(axes.T, shown_sweeps, strict=True):
        for key in sweep.methods:
            title, colour = results.plan.methods[key].title, method_colour(results, key)
            available = {value: runs for value in sweep.values if (runs := results.sweeps[sweep.key][key, value])}
            for panel, get_values in zip(column, (_all, _few, _uniformity), strict=True):
                _line(panel, sweep, {value: get_values(runs) for value, runs in available.items()}, title, colour)
        column[-1].set_xlabel(sweep.axis)
    for row, label in zip(axes, ("all, %", "few, %", "uniformity U"), strict=True):
        row[0].set_ylabel(label)
    handles = {}
    for panel in axes[0]:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _all(runs: list[TrialResult]) -> np.ndarray:
    return reading.accuracy(runs)[:, -1]


def _few(runs: list[TrialResult]) -> np.ndarray:
    return reading.accuracy(runs)[:, -2]


def _uniformity(runs: list[TrialResult]) -> np.ndarray:
    return tables.measured_values(runs, "uniformity")


def _line(panel: Axes, sweep: Sweep, values: dict[str, np.ndarray], title: str, colour: str) -> None:
    positions = [sweep.values.index(value) for value in values]
    for position, seed_values in zip(positions, values.values(), strict=True):
        panel.scatter(np.full(len(seed_values), position), seed_values, s=12, color=colour, alpha=0.5, linewidth=0)
    panel.plot(positions, [seed_values.mean() for seed_values in values.values()], color=colour, lw=1.5, label=title)
    panel.set_xticks(range(len(sweep.values)), sweep.labels)
    panel.spines[["top", "right"]].set_visible(False)
