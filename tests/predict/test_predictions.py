"""python -m imagenet_inat.predict: its predictions are those of stage 2, for checkpoints and exported programs."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
from imagenet_inat.predict import __main__ as predict
from moco.encoders import constructor
from tests.predict.conftest import NAMES
from tests.refusals import line_with


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def test_list(named_flags) -> list[str]:
    """Return the flags of the test split: 100 images with labels."""
    at = {name: named_flags[named_flags.index(name) + 1] for name in ("--test-txt", "--data-root")}
    return ["--list", at["--test-txt"], "--data-root", at["--data-root"]]


@pytest.mark.parametrize("head", ["linear", "logistic", "target", "cross-entropy"])
def test_accuracy_equals_results(head, classifiers, test_list, capsys):
    predict.main([str(classifiers[head]), *test_list, "-b", "7"])
    out, err = capsys.readouterr()
    selected = json.loads((classifiers[head] / "results.json").read_text())["selected"]
    line_with(err, "100 of 100", f"accuracy {selected['acc1']:.2f} %")
    rows = read_rows(out)
    counts = [[0] * 10 for _ in NAMES]
    for row in rows:
        assert row["class_name"] == NAMES[int(row["label"])] and row["true_class_name"] == NAMES[int(row["true_label"])]
        counts[int(row["true_label"])][int(row["label"])] += 1
    assert counts == selected["confusion"]["counts"]


def test_top_five_are_sorted_and_different(classifiers, test_list, capsys):
    predict.main([str(classifiers["logistic"]), *test_list])
    for row in read_rows(capsys.readouterr().out):
        probabilities = [float(row[f"probability{place}"]) for place in ("", "_2", "_3", "_4", "_5")]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1 + 1e-5
        assert len({row[f"label{place}"] for place in ("", "_2", "_3", "_4", "_5")}) == 5


def test_json_lines_equal_csv(classifiers, test_list, tmp_path):
    """Loader processes and batch sizes do not change the predictions."""
    predict.main([str(classifiers["logistic"]), *test_list, "--output", str(tmp_path / "p.csv"), "-j", "2", "-b", "32"])
    predict.main([str(classifiers["logistic"]), *test_list, "--output", str(tmp_path / "p.jsonl")])
    rows = read_rows((tmp_path / "p.csv").read_text())
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == len(records) == 100
    for row, record in zip(rows, records, strict=True):
        assert row["path"] == record["path"] and row["class_name"] == record["class_name"]
        assert [row["label"], row["label_5"]] == [str(record["top"][place]["label"]) for place in (0, 4)]
        assert float(row["probability"]) == pytest.approx(record["probability"], abs=1e-5)
        assert "error" not in record and row["error"] == ""


def test_checkpoint_and_folder_are_the_same_classifier(classifiers, test_list, capsys):
    found = []
    for source in (classifiers["linear"], classifiers["linear"] / "model_best.pth.tar"):
        predict.main([str(source), *test_list])
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_list_without_labels_gives_same_predictions(classifiers, test_list, tmp_path, capsys):
    lines = Path(test_list[1]).read_text().splitlines()
    (tmp_path / "paths.txt").write_text("\n".join(line.split()[0] for line in lines))
    predict.main([str(classifiers["linear"]), *test_list])
    labelled = read_rows(capsys.readouterr().out)
    predict.main([str(classifiers["linear"]), "--list", str(tmp_path / "paths.txt"), *test_list[2:]])
    out, err = capsys.readouterr()
    assert "accuracy" not in err
    keys = ("path", "label", "probability_3")
    assert [[row[k] for k in keys] for row in read_rows(out)] == [[row[k] for k in keys] for row in labelled]


def test_single_images_fit_a_network_that_cannot_train_on_one(data_flags, test_list, tmp_path, capsys):
    """The batch norm of lenet needs two images, but only in training."""
    torch.save(constructor("lenet", 16)(num_classes=10).state_dict(), tmp_path / "lenet.pth")
    flags = "-a lenet --image-size 16 --head ncm -b 1 -j 0 --device cpu"
    words = [*data_flags, *flags.split()]
    stage2.main([*words, "--pretrained", str(tmp_path / "lenet.pth"), "--run-dir", str(tmp_path / "ncm")])
    stage2.main(["--evaluate", "--resume", str(tmp_path / "ncm" / "model_best.pth.tar"), "-b", "1"])
    predict.main([str(tmp_path / "ncm"), *test_list, "-b", "1"])
    line_with(capsys.readouterr().err, "100 of 100")
