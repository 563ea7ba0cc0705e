"""Accuracy over the length of training: the tables and the figure of a plan with lengths."""

import numpy as np
from matplotlib.figure import Figure

from examples.results import figures, reading, tables
from examples.results.plan import TRAINS_NETWORK
from examples.results.reading import Results
from utils.measure.results import format_markdown_table

VIEWS = (
    "Methods that use one view, such as cross-entropy, train for twice as many, so that all methods see the same "
    "number of views."
)
SHIFT = 1.02  # between the lines of two methods
CAPTION = "Test accuracy over the epochs of contrastive training: mean over seeds, ± one standard deviation."


def describe(results: Results) -> str:
    """Say how long the methods are trained."""
    longest = f"{results.plan.length:,}"
    if len(results.lengths) == 1:
        return f"A method that uses two views of each image per epoch trains for {longest} epochs. {VIEWS}"
    text = (
        f"A number of epochs is that of a method that uses two views of each image per epoch. {VIEWS} Tables and "
        f"figures without a number of epochs are those of {longest} epochs."
    )
    if len(results.methods) == len(results.plan.methods):
        return text
    return f"{text} They omit methods that were not trained for so long, which have a dash in the other tables."


def describe_seeds(results: Results) -> str:
    """Return `5 seeds at 30 epochs and 3 at 100`."""
    first, *others = ((num_seeds(results, length), length) for length in results.lengths)
    parts = [f"{first[0]} seeds at {first[1]:,} epochs", *(f"{number} at {length:,}" for number, length in others)]
    return tables.listed(parts)


def sentences(results: Results) -> list[str]:
    """Return, for each imbalance, which methods are best on validation at each length and how they differ on test."""
    imbalances = sorted(results.plan.imbalances, reverse=True)
    return [text for rho in imbalances if (text := _best_pairs_text(results, rho))]


def _best_pairs_text(results: Results, rho: float) -> str:
    """Return the text of `sentences` for an imbalance, or "" if at each length one of the two kinds is missing."""
    contrast: dict[str, list[int]] = {}  # title of the best contrastive method -> the lengths at which it is best
    baseline: dict[str, list[int]] = {}  # the same for cross-entropy
    outcomes: dict[str, list[int]] = {}  # what their difference shows -> lengths
    for length in results.lengths:
        at_length = results.at_length(length)
        if pair := tables.best_pair(at_length, rho):
            outcome = tables.outcome(tables.overall_difference(at_length, rho, pair))
            titles = (results.plan.methods[key].title for key in pair)
            for found, text in zip((contrast, baseline, outcomes), (*titles, outcome), strict=True):
                found.setdefault(text, []).append(length)
    if not outcomes:
        return ""
    return (
        f"By validation accuracy (the table shows test accuracy), the best contrastive method at ρ = {rho:g} is "
        f"{_with_lengths(contrast)}. The best method without contrast is {_with_lengths(baseline)}. On the test "
        f"set, compared with the method without contrast, the contrastive method is {_with_lengths(outcomes)}."
    )


def _with_lengths(found: dict[str, list[int]]) -> str:
    """Return, as in `KCL at 30 and 100 epochs and TSC at 300 epochs`, each text with its lengths."""
    return tables.listed(
        [f"{text} at {tables.listed([f'{length:,}' for length in where])} epochs" for text, where in found.items()]
    )


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
    """Return a table of rows that end with cells of the lengths. Missing cells, at the end of a row, get a dash."""
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
    """Plot accuracy over all and over few-shot classes at the largest imbalance, one line per method.

    The lines are shifted sideways by a few percent, so that their error bars do not overlap.
    """
    figure, axes = figures.panels(2, 3.8, 5.2)
    rho = max(results.plan.imbalances)
    for panel, (label, column) in zip(axes, (("all", -1), ("few", -2)), strict=True):
        for number, method in enumerate(results.plan.methods.values()):
            lengths = trained_lengths(results, method.key)
            groups = [tables.common_runs(results.at_length(length), rho, method) for length in lengths]
            values = [reading.accuracy(runs)[:, column] for runs in groups]
            means = np.array([seeds.mean() for seeds in values])
            stds = [seeds.std(ddof=1) if len(seeds) > 1 else 0 for seeds in values]  # as in the tables
            colour = figures.method_colour(results, method.key)
            marker = "o-" if method.stage1 in TRAINS_NETWORK else "--"  # pixels do not depend on the length
            x = np.array(lengths) * SHIFT ** (number - (len(results.plan.methods) - 1) / 2)
            style = {"lw": 1.5, "elinewidth": 1, "capsize": 2, "markersize": 4}
            panel.errorbar(x, means, stds, fmt=marker, color=colour, label=method.title, **style)
        panel.set_xscale("log")
        panel.set_xticks([*results.lengths], [f"{length:,}" for length in results.lengths])
        panel.minorticks_off()
        panel.set(xlabel="epochs of contrastive training", ylabel=f"test accuracy, {label}, %, ρ = {rho:g}")
        panel.grid(axis="y", color="0.9")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
