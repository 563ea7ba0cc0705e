"""Plot a target set: its cosines and their bounds, and in two or three dimensions the points."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # write files only; no display is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from moco.targets.bounds import format_energy, format_gap, pair_cosines, quadrature
from utils.files import write_atomically
from utils.report.style import COLOURS

BINS = 101  # odd, so that a single cosine is in the middle of a bin


def plot_targets(points: np.ndarray, quality: dict, path: Path) -> None:
    """Plot a histogram of the cosines of all pairs, with their bounds; for D = 2 and 3, also plot the points.

    Args:
        points: (C, D) unit rows, C ≥ 2. quality: their `target_quality`. path: PNG file to write.
    """
    points = np.asarray(points, dtype=np.float64)
    dim = points.shape[1]
    panels = 2 if dim in (2, 3) else 1
    figure = plt.figure(figsize=(8 if panels == 1 else 12, 4.5), layout="constrained")
    figure.suptitle(f"{format_energy(quality)}: {format_gap(quality)}")
    plot_histogram(figure.add_subplot(1, panels, 1), points, quality)
    if dim == 2:
        plot_circle(figure.add_subplot(1, 2, 2), points)
    elif dim == 3:
        plot_sphere(figure.add_subplot(1, 2, 2, projection="3d"), points)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)


def plot_histogram(axes: Axes, points: np.ndarray, quality: dict) -> None:
    """Plot the share of pairs in each bin, and the bounds of the mean, the RMS and an optimal set."""
    low, high = min(piece.min() for piece in pair_cosines(points)), quality["max_cosine"]
    margin = max(0.03, 0.05 * (high - low))
    edges = np.linspace(max(low - margin, -1.001), min(high + margin, 1.001), BINS + 1)
    counts = sum(np.histogram(piece, edges)[0] for piece in pair_cosines(points))
    axes.stairs(100 * counts / counts.sum(), edges, fill=True, color=COLOURS[0], label="pairs of targets")
    mean, welch = quality["simplex_cosine"], quality["welch_bound"]
    axes.axvline(mean, color=COLOURS[1], label=f"−1/(C−1) = {mean:.4f}: lower bound of the mean")
    if welch > 0:
        axes.axvline(welch, color=COLOURS[2], linestyle="--", label=f"±{welch:.4f}, Welch's lower bound of the RMS")
        axes.axvline(-welch, color=COLOURS[2], linestyle="--")
    rule = quadrature(quality["classes"], quality["dim"])
    if rule is not None and quality["degree"] > 1:
        for i, node in enumerate(rule[0]):
            name = "cosines of a set that reaches the energy bound" if i == 0 else None
            axes.axvline(node, color=COLOURS[3], linestyle=":", linewidth=2, label=name)
    axes.set(xlim=(edges[0], edges[-1]), xlabel="cosine of two targets", ylabel="pairs, %")
    axes.figure.legend(loc="outside lower left", frameon=False, fontsize="small", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def plot_circle(axes: Axes, points: np.ndarray) -> None:
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.7"))
    axes.scatter(*points.T, color=COLOURS[0], zorder=2)
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axes.axis("off")


def plot_sphere(axes: Axes, points: np.ndarray) -> None:
    """Plot the points in 3D. Points at the back are paler (depth shading)."""
    turn, height = np.meshgrid(np.linspace(0, 2 * np.pi, 25), np.linspace(0, np.pi, 13))
    sphere = np.cos(turn) * np.sin(height), np.sin(turn) * np.sin(height), np.cos(height)
    axes.plot_wireframe(*sphere, color="0.85", linewidth=0.5)
    axes.scatter(*points.T, color=COLOURS[0], s=25)
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.axis("off")
