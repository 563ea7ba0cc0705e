"""Figures: their themes, and those that are files of their own."""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

from utils.errors import printable

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


def lettered(name: str) -> str:
    """A name as Matplotlib shows it letter by letter: `$` is no formula, and a leading `_` hides no line's label."""
    text = re.sub(r"\s", " ", printable(name)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


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
