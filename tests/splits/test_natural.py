"""`make --profile natural` uses every image, also of classes that are too small for validation and test."""

import json

import numpy as np
import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.plan import SplitPlan, plan_sizes
from imagenet_inat.splits import __main__ as splits
from tests.refusals import line_with, refusal
from tests.splits.test_folders import touch

COUNTS = {"ant": 30, "bee": 10, "cat": 3, "dog": 2, "eel": 1}


def counts_of(lists) -> dict[str, list[int]]:
    labels = {split: read_split(lists / f"custom_{split}.txt", None)[1] for split in ("train", "val", "test")}
    return {split: np.bincount(values, minlength=len(COUNTS)).tolist() for split, values in labels.items()}


def make(tmp_path, flags: str = "") -> dict[str, list[int]]:
    source = touch(tmp_path / "images", COUNTS)
    splits.main(["make", str(source), "--output", str(tmp_path / "lists"), *flags.split()])
    return counts_of(tmp_path / "lists")


def test_every_image_is_used_and_small_classes_train(tmp_path, capsys):
    counts = make(tmp_path)
    assert counts == {"train": [21, 7, 1, 2, 1], "val": [3, 1, 1, 0, 0], "test": [6, 2, 1, 0, 0]}
    assert json.loads((tmp_path / "lists" / "made.json").read_text())["profile"] == "natural"
    out = capsys.readouterr().out
    line_with(out, "no val image", "2 of 5", "dog (2)", "eel (1)")
    line_with(out, "no test image", "2 of 5", "dog (2)", "eel (1)")


@pytest.mark.parametrize(
    ("flags", "val", "test"),
    [
        ("--val 0.5 --test 0.25", [15, 5, 1, 0, 0], [7, 2, 1, 0, 0]),
        ("--val 4 --test 0.1", [4, 3, 1, 0, 0], [3, 1, 1, 0, 0]),
        ("--val 20 --test 20", [10, 3, 1, 0, 0], [10, 3, 1, 0, 0]),
    ],
)
def test_validation_and_test_are_shares_or_numbers(flags, val, test, tmp_path):
    counts = make(tmp_path, flags)
    assert (counts["val"], counts["test"]) == (val, test)
    assert np.sum(list(counts.values()), axis=0).tolist() == list(COUNTS.values())


def test_every_class_that_can_be_split_has_an_image_in_each_list():
    for val, test in ((0.01, 0.01), (0.9, 0.05), (0.05, 0.9), (50, 0.9), (1, 1), (10**6, 10**6)):
        sizes = plan_sizes(list(range(3, 60)), SplitPlan(val=val, test=test), [])
        assert all(counts.min() >= 1 for counts in sizes) and (sum(sizes) == np.arange(3, 60)).all()


def test_small_classes_are_omitted_on_request(tmp_path, capsys):
    counts = make(tmp_path, "--min-images 3")
    assert counts["train"] == [21, 7, 1, 0, 0]
    assert json.loads((tmp_path / "lists" / "made.json").read_text())["classes"] == ["ant", "bee", "cat"]
    line_with(capsys.readouterr().out, "--min-images 3", "2 of 5", "dog (2)", "eel (1)")


@pytest.mark.parametrize("flags", ["--val 0.5 --test 0.5", "--profile natural --imbalance 5", "--min-images 20"])
def test_impossible_flags_are_refused(flags, tmp_path):
    refusal(lambda: make(tmp_path, flags), *[word for word in flags.split() if word.startswith("--")][-1:])
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("value", ["0", "1.0", "-3", "x"])
def test_invalid_share_is_refused(value, tmp_path):
    with pytest.raises(SystemExit):
        make(tmp_path, f"--val={value}")


def test_classes_without_evaluation_images_are_skipped_by_all_measures(tmp_path):
    """Both stages run, and accuracies are those of the classes with images."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(COUNTS.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    splits.main(["make", str(tmp_path / "images"), "--output", str(tmp_path / "lists")])
    words = f"--dataset custom --data-root {tmp_path}/images --splits {tmp_path}/lists --image-size 8 -a resnet20"
    words = [*words.split(), *["-b", "16", "-j", "0", "--seed", "0", "--device", "cpu", "-p", "0", "--epochs", "1"]]
    run = tmp_path / "run"
    monitor = ["--monitor-freq", "1", "--online-probe", "class-balanced"]
    stage1.main([*words, *monitor, "--moco-k", "32", "--run-dir", str(run)])
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert all(np.isfinite(value) for value in record["val"].values() if isinstance(value, float))
    pretrained = ["--pretrained", str(run / "last.pth.tar")]
    stage2.main([*words, *pretrained, "--run-dir", str(run / "probe")])
    stage2.main([*words, *pretrained, "--compare-heads"])
    selected = json.loads((run / "probe" / "results.json").read_text())["selected"]
    tested, untested = selected["per_class"][:3], selected["per_class"][3:]
    assert untested == [None, None] and selected["balanced"] == pytest.approx(np.mean(tested))
    heads = json.loads((run / "heads" / "results.json").read_text())["heads"]
    assert all(np.isfinite([head["acc1"], head["val_acc1"]]).all() for head in heads.values())
