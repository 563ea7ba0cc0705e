"""Figures."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed
import matplotlib.pyplot as plt
import numpy as np

from utils.tables import SHOT_NOTE

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by everybody


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
