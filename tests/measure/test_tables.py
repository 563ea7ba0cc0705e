"""The table and the plot of several results."""

import json

import numpy as np
from matplotlib.image import imread

from utils.measure.results import format_results_table
from utils.report.figures import per_class_accuracy


def test_results_table_has_a_row_per_method_and_epoch(probe_run):
    record = json.loads((probe_run / "results.json").read_text())
    lines = format_results_table({"KCL": record, "TSC": record}).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].startswith("| KCL | selected (") and lines[5].startswith("| TSC | last (2) | ")
    assert lines[5].endswith(f"| {record['last']['acc1']:.2f} |")


def test_empty_shot_group_is_a_dash():
    entry = {"epoch": 1, "acc1": 50.0, "many": None, "medium": 50.0, "few": None}
    table = format_results_table({"KCL": {"selected": entry, "last": entry}})
    assert "| KCL | selected (1) | – | 50.00 | – | 50.00 |" in table


def test_per_class_plot_has_a_bar_per_method_and_class(probe_run, tmp_path):
    record = json.loads((probe_run / "results.json").read_text())
    record["selected"]["per_class"] = [100.0] * 9 + [None]  # a class without test images has no bar
    per_class_accuracy({"KCL": record, "TSC": record}, tmp_path / "p.png")
    pixels = (imread(tmp_path / "p.png")[:, :, :3] * 255).round().astype(int)
    blue, orange = [(pixels == colour).all(axis=2) for colour in ((0, 114, 178), (213, 94, 0))]
    row = pixels.shape[0] // 2  # crosses every bar
    assert count_runs(blue[row]) == count_runs(orange[row]) == 9


def count_runs(mask: np.ndarray) -> int:
    return int((np.diff(np.concatenate([[0], mask.astype(int)])) == 1).sum())
