"""Names of the classes: read from made.json, stored in checkpoints and results.json, and shown in reports."""

import json
import re
from pathlib import Path

import pytest

from imagenet_inat.lists.known import class_names
from tests.predict.conftest import NAMES
from tests.refusals import line_with
from utils.report import __main__ as report
from utils.run import checkpoint


@pytest.mark.parametrize("head", ["linear", "logistic", "cross-entropy"])
def test_checkpoint_and_results_contain_names(head, classifiers):
    run = classifiers[head]
    state = checkpoint.read_file(run / "model_best.pth.tar")
    assert state["class_names"] == NAMES
    assert state["statistics"] == {"mean": [0.305] * 3, "std": [0.376] * 3}
    assert json.loads((run / "results.json").read_text())["class_names"] == NAMES


def test_stage1_checkpoint_contains_statistics_and_no_unknown_names(tsc_run):
    state = checkpoint.read_file(tsc_run / "last.pth.tar")
    assert "class_names" not in state and state["statistics"]["std"] == [0.376] * 3


@pytest.mark.parametrize("text", ["{}", '{"classes": ["a"]}', '{"classes": [1, 2]}'])
def test_file_without_names_of_all_classes_is_ignored(text, tmp_path):
    assert class_names(tmp_path / "custom_train.txt", 2) is None
    (tmp_path / "made.json").write_text(text)
    assert class_names(tmp_path / "custom_train.txt", 2) is None


def test_damaged_file_is_reported(tmp_path, capsys):
    (tmp_path / "made.json").write_text("{")
    assert class_names(tmp_path / "custom_train.txt", 2) is None
    line_with(capsys.readouterr().out, "note", tmp_path / "made.json")


def test_report_names_the_classes(classifiers, tmp_path):
    report.main([str(classifiers["linear"]), "--output", str(tmp_path)])
    section = (tmp_path / "report.md").read_text().split("## Confused classes")[1].split("\n## ")[0]
    results = json.loads((classifiers["linear"] / "results.json").read_text())
    counts = results["selected"]["confusion"]["counts"]
    images, label, predicted = max((n, -c, -d) for c, row in enumerate(counts) for d, n in enumerate(row) if c != d)
    first = next(line for line in section.splitlines() if re.search(r"\d of \d", line))
    expected = [f"{-label} {NAMES[-label]}", f"{-predicted} {NAMES[-predicted]}", f"{images} of {sum(counts[-label])}"]
    assert first.strip("| ").split(" | ")[:3] == expected
    drawn = (Path(tmp_path) / "report_figures" / "confusion_0.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in NAMES)
