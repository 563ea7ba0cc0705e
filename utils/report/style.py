"""Themes of the figures, and drawing in both of them."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

from utils.errors import printable
from utils.files import write_atomically

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, safe for colour-blind readers
LIGHT = (*COLOURS, "#8a6d00", "#3f4a56", "#5b8fb0")
DARK = ("#56b4e9", "#f0883e", "#2fc096", "#e79bc4", "#e3d14b", "#b9c2cc", "#8fb7d1")


class Picture(NamedTuple):
    """A figure as SVG for a light and for a dark page, with a transparent background."""

    name: str
    caption: str
    light: str
    dark: str


def theme(text: str, behind: str, colours: tuple[str, ...]) -> dict:
    """Return Matplotlib settings: the colour of text and axes, the background of legends, and the line colours."""
    places = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(places, text),
        "axes.prop_cycle": cycler(color=colours),
        "axes.facecolor": "none",
        "legend.facecolor": behind,
        "savefig.facecolor": "none",
        "svg.hashsalt": "report",  # makes the file reproducible
        "font.size": 11,
    }


THEMES = {"light": theme("#1b1f24", "#ffffff", LIGHT), "dark": theme("#e6e8eb", "#15181c", DARK)}


def escape_label(name: str) -> str:
    """Escape a name for Matplotlib, which treats `$` as a formula and hides labels with a leading `_`."""
    text = re.sub(r"\s", " ", printable(name)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def draw(name: str, caption: str, figure: Callable[..., Figure], *args) -> Picture:
    """Draw figure(*args) in both themes."""
    svg = {}
    for mode, settings in THEMES.items():
        with plt.rc_context(settings):
            drawn = figure(*args)
            buffer = io.StringIO()
            drawn.savefig(buffer, format="svg", metadata={"Date": None})
            plt.close(drawn)
            svg[mode] = buffer.getvalue()
    return Picture(name, caption, **svg)


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure to a file and close it. The suffix of the path is the format."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower() or "png", dpi=dpi))
    plt.close(figure)
