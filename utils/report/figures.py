"""The figures of a report; each function draws one in the current theme."""

import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
from cycler import cycler
from matplotlib import colormaps, patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from utils.measure.metrics import FEW_BELOW, MANY_ABOVE
from utils.measure.results import SHOT_NOTE, SHOTS, accuracies
from utils.report.style import COLOURS, LIGHT, escape_label, save_figure

LABEL_WIDTH = 34  # characters of a line of a y label
SIZE, SQUARE = (4.4, 3.1), (4.4, 3.9)  # inches; text stays readable on a telephone at 370 px
NAMED_CLASSES = 20  # with more classes, the axis has no class names
MAX_LABEL = 16  # longer names of classes are shortened
COUNTED_CLASSES = 12  # with more classes, the cells of a confusion matrix have no numbers
# Blue to red, without the ends of Matplotlib's colour map, which are too dark on a dark page.
FREQUENCY = ListedColormap(colormaps["turbo"](np.linspace(0.1, 0.9, 256)))


def _axes() -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure) -> Figure:
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def curves(lines: dict[str, tuple[list, list]], label: str, switch: float | None, log: bool = False) -> Figure:
    """Draw a value over the epochs, one line per run.

    Args:
        lines: run name -> epochs and values. Both are empty for a run without values, which still uses up a colour. A
            name ending in " (test)" is dashed, in the colour of the preceding line.
        label: label of the y axis.
        switch: the epoch after which TSC begins.
        log: whether the y axis is logarithmic.
    """
    figure, axes = _axes()
    colour = -1
    for name, (epochs, values) in lines.items():
        test = name.endswith(" (test)")
        colour += not test
        marks = {"marker": "o", "markersize": 3} if len(epochs) < 20 else {}
        if epochs:
            axes.plot(
                epochs, values, color=f"C{colour}", linestyle="--" if test else "-", label=escape_label(name), **marks
            )
    if switch is not None:
        axes.axvline(switch + 0.5, color="0.5", linestyle=":", linewidth=1)
        position = {"xy": (switch + 0.5, 1), "xycoords": ("data", "axes fraction")}  # above the axes, beside no curve
        axes.annotate(
            "TSC", **position, xytext=(0, 2), textcoords="offset points", ha="center", color="0.5", fontsize=10
        )
    shown = [value for epochs, values in lines.values() for value in values]
    if log:
        axes.set_yscale("log")
    if shown and min(shown) == max(shown):  # Matplotlib would enlarge a constant to the whole height
        margin = abs(shown[0]) / 2 or 1
        axes.set_ylim(shown[0] - margin, shown[0] + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel=textwrap.fill(label, LABEL_WIDTH))
    return _legend(figure)


def accuracy_against_count(per_class: dict[str, list[float | None]], counts: np.ndarray) -> Figure:
    """Draw each class's test accuracy over its number of training images (log axis); shots are shaded.

    Args:
        per_class: maps the name of a run to (C,) percentages; None for a class without test images.
        counts: (C,) training images.
    """
    figure, axes = _axes()
    low, high = max(counts.min(), 1) / 1.3, counts.max() * 1.3
    edges = np.clip([low, FEW_BELOW, MANY_ABOVE + 0.5, high], low, high)
    for shot, (left, right), alpha in zip(reversed(SHOTS), pairwise(edges), (0.22, 0.12, 0.03), strict=True):
        if left < right:
            axes.axvspan(left, right, color="0.5", alpha=alpha, linewidth=0)
            axes.text(np.sqrt(left * right), 103, shot, ha="center", va="bottom", fontsize=10)
    shift = 1.02  # points of different runs lie side by side
    for i, (name, values) in enumerate(per_class.items()):
        heights = np.array(values, dtype=float)  # None (a class without test images) becomes nan
        places = np.maximum(counts, 1) * shift ** (i - (len(per_class) - 1) / 2)
        size = 26 if len(counts) <= 100 else 8
        axes.scatter(
            places,
            heights,
            size,
            color=f"C{i}",
            marker="os^Dv"[i % 5],
            alpha=0.8,
            label=escape_label(name) if np.isfinite(heights).any() else None,
            linewidth=0,
        )
    axes.set(xscale="log", xlim=(low, high), ylim=(-4, 112), yticks=range(0, 101, 20))
    axes.set(xlabel="training images of the class", ylabel="test accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())  # its labels would overlap
    return _legend(figure)


def _name_classes(axes: Axes, classes: list[str], rows: bool = False) -> None:
    """Write the names of at most NAMED_CLASSES classes below the columns of a drawing, and beside its rows."""
    if len(classes) > NAMED_CLASSES:
        return
    labels = [escape_label(name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…") for name in classes]
    is_long = max(map(len, labels)) > 3
    axes.set_xticks(range(len(labels)), labels, rotation=90 if is_long else 0, fontsize=9 if is_long else None)
    if rows:
        axes.set_yticks(range(len(labels)), labels, fontsize=9 if is_long else None)


def confusion_matrix(counts: np.ndarray, classes: list[str]) -> Figure:
    """Draw the shares of each class's images that are classified as each class, with the counts of few classes.

    Args:
        counts: (C, C) images; row: class, column: predicted class. classes: names of rows and columns.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4.9), layout="constrained")  # room for the names
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    for (row, column), images in np.ndenumerate(counts if len(classes) <= COUNTED_CLASSES else np.empty((0, 0))):
        if images:
            colour = "#ffffff" if shares[row, column] > 55 else "#1b1f24"
            axes.text(column, row, images, ha="center", va="center", fontsize=8, color=colour)
    _name_classes(axes, classes, rows=True)
    axes.set(xlabel="predicted class, most training images first", ylabel="class")
    figure.colorbar(image, label="% of the class", shrink=0.9)
    return figure


def centre_similarities(cosines: np.ndarray, classes: list[str]) -> Figure:
    """Draw the cosines of all pairs of class centres, (C, C), as colours; rows and columns follow `classes`."""
    figure, axes = plt.subplots(figsize=SQUARE, layout="constrained")
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    _name_classes(axes, classes, rows=True)
    axes.set(xlabel="class, most training images first", ylabel="class")
    figure.colorbar(image, label="cosine of the centres", shrink=0.9)
    return figure


def cosines_to_targets(values: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Draw cosines to the assigned targets. values: what is compared -> (C,) cosines in the order of `classes`."""
    figure, axes = _axes()
    for i, (name, cosines) in enumerate(values.items()):
        size = 26 if len(classes) <= 100 else 6
        axes.scatter(range(len(cosines)), cosines, size, color=f"C{i}", marker="os"[i % 2], label=name, linewidth=0)
    _name_classes(axes, classes)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_ylim(min(-0.1, axes.get_ylim()[0]), 1.05)
    axes.set(xlabel="class, most training images first", ylabel="cosine to its target")
    return _legend(figure)


def feature_map(points: np.ndarray, ranks: np.ndarray, classes: list[str], on_circle: bool) -> Figure:
    """Draw images as points in the plane, coloured by the frequency of their class.

    Args:
        points: (n, 2) coordinates.
        ranks: (n,) index of each point's class in `classes`, the most frequent class first.
        on_circle: whether the points are unit features, for which a circle is drawn.
    """
    figure, axes = plt.subplots(figsize=SQUARE, layout="constrained")
    if on_circle:
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
    size = 16 if len(points) < 500 else 5
    last = max(len(classes) - 1, 1)
    many = len(points) > 3000  # a vector drawing of so many points would be too large
    dots = axes.scatter(*points.T, size, c=ranks, cmap=FREQUENCY, vmin=0, vmax=last, linewidth=0, rasterized=many)
    if len(classes) <= NAMED_CLASSES:
        halo = [patheffects.withStroke(linewidth=3, foreground=plt.rcParams["legend.facecolor"])]
        for rank in np.unique(ranks):
            position = np.median(points[ranks == rank], axis=0)
            style = {"fontsize": 12, "weight": "bold", "path_effects": halo}
            axes.annotate(escape_label(classes[rank]), position, xytext=(6, 6), textcoords="offset points", **style)
    bar = figure.colorbar(dots, shrink=0.9, ticks=[0, last])
    bar.ax.set_yticklabels(["most", "fewest"])
    bar.set_label("training images of the class", labelpad=-14)
    bar.ax.invert_yaxis()
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    return figure


def heads_dots(heads: dict[str, dict]) -> Figure:
    """Draw one line per head, with dots for many, medium, few and all. heads: title -> entry, as in results.json."""
    figure, axes = plt.subplots(figsize=(SIZE[0] * 1.5, 0.32 * len(heads) + 1.3), layout="constrained")
    places = range(len(heads), 0, -1)
    axes.hlines(places, 0, 100, color="0.5", alpha=0.25, linewidth=0.8)
    for i, shot in enumerate((*SHOTS, "acc1")):
        values = np.array([entry[shot] for entry in heads.values()], dtype=float)  # None becomes nan
        label, marker = ("all", "D") if shot == "acc1" else (shot, "o^s"[i])
        label = label if np.isfinite(values).any() else None
        axes.scatter(values, places, 34, color=f"C{i}", marker=marker, label=label, linewidth=0, zorder=3)
    lowest = min(value for entry in heads.values() for value in accuracies(entry) if value is not None)
    axes.set_yticks(places, [*map(escape_label, heads)])
    axes.set(xlabel="test accuracy, %", xlim=(max(0, 10 * int((lowest - 5) / 10)), 101))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def heads_picture(heads: dict[str, dict], path: Path) -> None:
    """Write the figure of `heads_dots` to a file."""
    with plt.rc_context({"axes.prop_cycle": cycler(color=LIGHT)}):
        figure = heads_dots(heads)
        save_figure(figure, path, dpi=140)


def per_class_accuracy(results: dict[str, dict], path: Path) -> None:
    """Write a bar chart of each class's test accuracy, frequent classes first.

    results: method name -> contents of its results.json.
    """
    counts = np.array(next(iter(results.values()))["train_counts"])
    order = np.argsort(-counts, kind="stable")
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(results)
    for i, ((method, record), colour) in enumerate(zip(results.items(), COLOURS, strict=False)):
        entry = record["selected"]
        heights = np.array(entry["per_class"], dtype=float)[order]
        places = np.arange(len(order)) + (i - (len(results) - 1) / 2) * width
        axes.bar(places, heights, width, color=colour, label=f"{escape_label(method)}: {entry['acc1']:.1f} % overall")
    names = next(iter(results.values())).get("class_names") or range(len(order))
    axes.set_xticks(range(len(order)), [f"{escape_label(str(names[c]))}\n{counts[c]}" for c in order])
    axes.set(xlabel=f"class and its number of training images\n{SHOT_NOTE}", ylabel="test accuracy, %")
    axes.set(ylim=(0, 118), yticks=range(0, 101, 20))
    axes.legend(loc="upper right", ncols=len(results), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=120)
