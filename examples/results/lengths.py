"""Accuracy over the length of training: the tables and the figure of a plan with lengths."""

import numpy as np
from matplotlib.figure import Figure

from examples.results import figures, reading, tables
from examples.results.plan import TRAINS_NETWORK
from examples.results.reading import Results
from utils.measure.results import format_markdown_table

CAPTION = "Test accuracy over the epochs of contrastive training: mean over seeds, ± one standard deviation."


def summary(results: Results) -> str:
    """Return a table of the accuracy over all (few-shot) classes. Rows: imbalances and methods; columns: lengths."""
    rows = []
    for rho in results.plan.imbalances:
        for method in results.plan.methods.values():
            groups = [
                tables.common_runs(results.at_length(length), rho, method)
                for length in trained_lengths(results, method.key)
            ]
            rows.append([f"{rho:g}", method.title, *map(tables.all_and_few, groups)])
    return _table(results, "method", rows)


def difference_summary(results: Results) -> str:
    """Return a table of paired differences over all classes. Rows: imbalances and pairs; columns: lengths."""
    plan, rows = results.plan, []
    for rho in plan.imbalances:
        for pair in plan.pairs:
            lengths = trained_lengths(results, *pair)
            at_lengths = [tables.overall_difference(results.at_length(length), rho, pair) for length in lengths]
            name = " − ".join(plan.methods[key].title for key in pair)
            rows.append([f"{rho:g}", name, *map(tables.format_difference, at_lengths)])
    return _table(results, "difference", rows)


def _table(results: Results, name: str, rows: list[list[str]]) -> str:
    """Return a table of rows that end with one cell per length. Cells of lengths without results are a dash."""
    columns = [f"{length:,} epochs ({num_seeds(results, length)} seeds)" for length in results.lengths]
    header = ["ρ", name, *columns]
    return format_markdown_table(header, [row + ["–"] * (len(header) - len(row)) for row in rows], text_columns=2)


def trained_lengths(results: Results, *keys: str) -> list[int]:
    """Return the lengths, ascending, at which all of some methods have results."""
    return [length for length in results.lengths if results.at_length(length).methods.keys() >= {*keys}]


def num_seeds(results: Results, length: int) -> int:
    """Return the number of seeds that all methods have at a length, at all imbalances."""
    return min(tables.num_common_seeds(results.at_length(length), rho) for rho in results.plan.imbalances)


def accuracy(results: Results) -> Figure:
    """Plot accuracy over all and over few-shot classes at the largest imbalance, one line and band per method."""
    figure, axes = figures.panels(2, 3.8, 5.2)
    rho = max(results.plan.imbalances)
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        for method in results.plan.methods.values():
            lengths = trained_lengths(results, method.key)
            groups = [tables.common_runs(results.at_length(length), rho, method) for length in lengths]
            values = [reading.accuracy(runs)[:, column] for runs in groups]
            means, stds = (np.array([statistic(seeds) for seeds in values]) for statistic in (np.mean, np.std))
            colour = figures.method_colour(results, method.key)
            marker = "o-" if method.stage1 in TRAINS_NETWORK else "--"  # pixels do not depend on the length
            panel.plot(lengths, means, marker, color=colour, lw=1.5, markersize=4, label=method.title)
            panel.fill_between(lengths, means - stds, means + stds, color=colour, alpha=0.15, lw=0)
        panel.set_xscale("log")
        panel.set_xticks([*results.lengths], [f"{length:,}" for length in results.lengths])
        panel.minorticks_off()
        panel.set(xlabel="epochs of contrastive training", ylabel=f"test accuracy, {label}, %, ρ = {rho:g}")
        panel.grid(axis="y", color="0.9")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
