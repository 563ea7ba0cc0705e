"""The figures of a report: each function draws one, in whichever theme is set."""

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from imagenet_inat.datasets import FEW_BELOW, MANY_ABOVE

SIZE = (4.4, 3.1)  # inches: the letters stay readable when a telephone shows it at 370 px
SQUARE = (4.4, 3.9)
NAMED_CLASSES = 20  # more are not named one by one
# From blue to red; the ends of Matplotlib's map are too dark for a dark page.
FREQUENCY = ListedColormap(colormaps["turbo"](np.linspace(0.1, 0.9, 256)))


def axes_of(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(lines: dict[str, tuple[list, list]], label: str, switch: float | None, log: bool = False) -> Figure:
    """A value over the epochs, one line a run.

    Args:
        lines: run name -> epochs and values, empty where a run has none: its colour stays free. A name
            that ends in " (test)" is dashed, in the colour of the line before.
        switch: the epoch after which TSC begins.
    """
    figure, axes = axes_of()
    colour = -1
    for name, (epochs, values) in lines.items():
        test = name.endswith(" (test)")
        colour += not test
        marks = {"marker": "o", "markersize": 3} if len(epochs) < 20 else {}
        if epochs:
            axes.plot(epochs, values, color=f"C{colour}", linestyle="--" if test else "-", label=name, **marks)
    if switch is not None:
        axes.axvline(switch + 0.5, color="0.5", linestyle=":", linewidth=1)
        place = {"xy": (switch + 0.5, 1), "xycoords": ("data", "axes fraction")}
        axes.annotate("TSC", **place, xytext=(3, -9), textcoords="offset points", color="0.5", fontsize=10)
    if log:
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel=label)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def accuracy_against_count(per_class: dict[str, list[float | None]], counts: np.ndarray) -> Figure:
    """Test accuracy of each class over its training images, log axis; shots are shaded.

    Args:
        per_class: run name -> (C,) percent. counts: (C,) training images.
    """
    figure, axes = axes_of()
    low, high = max(counts.min(), 1) / 1.3, counts.max() * 1.3
    edges = [low, FEW_BELOW, MANY_ABOVE + 0.5, high]
    for i, shot in enumerate(("few", "medium", "many")):
        left, right = np.clip(edges[i : i + 2], low, high)
        if left < right:
            axes.axvspan(left, right, color="0.5", alpha=(0.22, 0.12, 0.03)[i], linewidth=0)
            axes.text(np.sqrt(left * right), 103, shot, ha="center", va="bottom", fontsize=10)
    shift = 1.02  # side by side, not one on top of the other
    for i, (name, values) in enumerate(per_class.items()):
        heights = np.array([np.nan if value is None else value for value in values])
        places = np.maximum(counts, 1) * shift ** (i - (len(per_class) - 1) / 2)
        size = 26 if len(counts) <= 100 else 8
        axes.scatter(places, heights, size, color=f"C{i}", marker="os^Dv"[i % 5], alpha=0.8, label=name, linewidth=0)
    axes.set(xscale="log", xlim=(low, high), ylim=(-4, 112), yticks=range(0, 101, 20))
    axes.set_xlabel("training images of the class")
    axes.set_ylabel("test accuracy, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def centre_similarities(cosines: np.ndarray, classes: list[str]) -> Figure:
    """Cosines of all pairs of class centres, (C, C), as colours; rows and columns as in `classes`."""
    figure, axes = plt.subplots(figsize=SQUARE, layout="constrained")
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="class, most training images first", ylabel="class")
    figure.colorbar(image, label="cosine of the centres", shrink=0.9)
    return figure


def cosines_to_targets(values: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Cosines to the assigned target, class by class.

    Args:
        values: what is compared with the target -> (C,) cosines in the order of `classes`.
    """
    figure, axes = axes_of()
    for i, (name, cosines) in enumerate(values.items()):
        size = 26 if len(classes) <= 100 else 6
        axes.scatter(range(len(cosines)), cosines, size, color=f"C{i}", marker="os"[i % 2], label=name, linewidth=0)
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(
        xlabel="class, most training images first",
        ylabel="cosine to its target",
        ylim=(min(-0.1, axes.get_ylim()[0]), 1.05),
    )
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def feature_map(points: np.ndarray, ranks: np.ndarray, classes: list[str], on_circle: bool) -> Figure:
    """Images as points in the plane, coloured by how frequent their class is.

    Args:
        points: (n, 2). ranks: (n,) place of the point's class in `classes`, the most frequent first.
        on_circle: they are unit features of two dimensions, not a map of more.
    """
    figure, axes = plt.subplots(figsize=SQUARE, layout="constrained")
    if on_circle:
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
    size = 16 if len(points) < 500 else 5
    last = max(len(classes) - 1, 1)
    many = len(points) > 3000  # too many for a drawing of lines
    dots = axes.scatter(*points.T, size, c=ranks, cmap=FREQUENCY, vmin=0, vmax=last, linewidth=0, rasterized=many)
    if len(classes) <= NAMED_CLASSES:
        halo = [patheffects.withStroke(linewidth=3, foreground=plt.rcParams["legend.facecolor"])]
        for rank in np.unique(ranks):
            place = np.median(points[ranks == rank], axis=0)
            style = {"fontsize": 12, "weight": "bold", "path_effects": halo}
            axes.annotate(classes[rank], place, xytext=(6, 6), textcoords="offset points", **style)
    bar = figure.colorbar(dots, shrink=0.9, ticks=[0, last])
    bar.ax.set_yticklabels(["most", "fewest"])
    bar.set_label("training images of the class", labelpad=-14)
    bar.ax.invert_yaxis()
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure
