"""Figures: their themes, and those that are files of their own."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from utils.tables import SHOT_NOTE

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by everybody
LIGHT = (*COLOURS, "#8a6d00", "#3f4a56", "#5b8fb0")
DARK = ("#56b4e9", "#f0883e", "#2fc096", "#e79bc4", "#e3d14b", "#b9c2cc", "#8fb7d1")


class Picture(NamedTuple):
    """A figure drawn for a light and for a dark page, as SVG; its background is the page's."""

    name: str
    caption: str
    light: str
    dark: str


def theme(text: str, behind: str, colours: tuple[str, ...]) -> dict:
    """Settings of Matplotlib for letters and axes of one colour, and lines of others."""
    places = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(places, text),
        "axes.prop_cycle": cycler(color=colours),
        "axes.facecolor": "none",
        "legend.facecolor": behind,
        "savefig.facecolor": "none",
        "svg.hashsalt": "report",  # the same run makes the same file
        "font.size": 11,
    }


THEMES = {"light": theme("#1b1f24", "#ffffff", LIGHT), "dark": theme("#e6e8eb", "#15181c", DARK)}


def draw(name: str, caption: str, figure: Callable[..., Figure], *args) -> Picture:
    """Call figure(*args) in both themes."""
    svg = {}
    for mode, settings in THEMES.items():
        with plt.rc_context(settings):
            drawn = figure(*args)
            buffer = io.StringIO()
            drawn.savefig(buffer, format="svg", metadata={"Date": None})
            plt.close(drawn)
            svg[mode] = buffer.getvalue()
    return Picture(name, caption, **svg)


def per_class_accuracy(results: dict[str, dict], path: Path) -> None:
    """Bars of test accuracy a class, frequent classes first, one colour a method.

    Args:
        results: method name -> the contents of its results.json.
    """
    counts = np.array(next(iter(results.values()))["train_counts"])
    order = np.argsort(-counts, kind="stable")
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(results)
    for i, ((method, record), colour) in enumerate(zip(results.items(), COLOURS, strict=False)):
        entry = record["selected"]
        heights = np.array([np.nan if v is None else v for v in entry["per_class"]])[order]
        places = np.arange(len(order)) + (i - (len(results) - 1) / 2) * width
        axes.bar(places, heights, width, color=colour, label=f"{method}: {entry['acc1']:.1f} % over all")
    axes.set_xticks(range(len(order)), [f"{c}\n{counts[c]}" for c in order])
    axes.set_xlabel(f"class, and its training images\n{SHOT_NOTE}")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(loc="upper right", ncols=len(results), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
