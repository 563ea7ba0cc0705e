"""Which classes are confused: the counts agree with the accuracies, and reports and results.json show them."""

import json

import pytest
import torch

from tests.refusals import refusal
from utils.measure import confusion
from utils.measure.confusion import Confusion, most_confused
from utils.measure.metrics import rank_of_label
from utils.report.runs import read_results


def count(logits: list, labels: list, num_classes: int) -> dict:
    counts = Confusion(num_classes)
    counts.add(torch.tensor(logits), torch.tensor(labels))
    return counts.summary()


def test_counts_by_hand():
    """Classes 0 and 1 have two images each, class 2 has none. One image of class 1 is classified as 2."""
    logits = [[3.0, 1.0, 2.0], [9.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 5.0, 2.0]]
    found = count(logits, [0, 0, 1, 1], 3)
    assert found == {"counts": [[2, 0, 0], [0, 1, 1], [0, 0, 0]]}
    assert most_confused(found, 5) == [(1, 2, 1, 2)]


def test_tie_counts_as_error():
    assert count([[1.0, 1.0]], [0], 2) == {"counts": [[0, 1], [0, 0]]}


def test_many_classes_keep_most_frequent_errors(monkeypatch):
    """The errors of the list and of the matrix are the same."""
    logits, labels = torch.randn(200, 6), torch.randint(6, (200,))
    matrix = count(logits.tolist(), labels.tolist(), 6)
    hits = int((rank_of_label(logits, labels) < 1).sum())
    assert sum(row[c] for c, row in enumerate(matrix["counts"])) == hits
    monkeypatch.setattr(confusion, "MAX_CLASSES", 5)
    pairs = count(logits.tolist(), labels.tolist(), 6)
    assert most_confused(pairs, 40) == most_confused(matrix, 40)
    monkeypatch.setattr(confusion, "NUM_PAIRS", 3)
    assert count(logits.tolist(), labels.tolist(), 6)["pairs"] == pairs["pairs"][:3]


def test_results_contain_confusion_of_selected_epoch(probe_run):
    results = json.loads((probe_run / "results.json").read_text())
    counts = torch.tensor(results["selected"]["confusion"]["counts"])
    assert 100 * counts.trace() / counts.sum() == pytest.approx(results["selected"]["acc1"])
    shares = 100 * counts.diagonal() / counts.sum(1)
    assert shares.tolist() == pytest.approx(results["selected"]["per_class"])
    assert "confusion" not in results["last"] and "confusion" not in results["best_on_test"]


@pytest.mark.parametrize("bad", [3, {"counts": [[1]]}, {"pairs": [[0, 10, 1, 1]]}, {"pairs": [[0, 1, -1, 1]]}])
def test_damaged_confusion_is_refused(bad, probe_run, tmp_path):
    results = json.loads((probe_run / "results.json").read_text())
    results["selected"]["confusion"] = bad
    (tmp_path / "results.json").write_text(json.dumps(results))
    refusal(lambda: read_results(tmp_path / "results.json"), "results.json", "confusion")
