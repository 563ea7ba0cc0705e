"""--holdout: select on a part of the training list instead of the test list."""

import json

import numpy as np
import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import data_flags, options
from imagenet_inat.holdout import holdout_mask
from tests.refusals import exit_message, refusal
from tests.stopping import log_of
from utils.cli.parser import Parser
from utils.measure.results import format_results_table

COUNTS = [40, 20, 3, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write images of four classes: a plain colour with noise. The test list is also the validation list."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("test", [5] * 4)):
        lines = []
        for label, count in enumerate(counts):
            for number in range(count):
                name = f"{split}_{label}_{number}.png"
                pixels = rng.integers(0, 120, (8, 8, 3)) + 60 * np.eye(4)[label, :3]
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
                lines.append(f"{name} {label}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def words(folder) -> list[str]:
    lists = f"--train-txt {folder}/train.txt --val-txt {folder}/test.txt --test-txt {folder}/test.txt"
    sizes = "--image-size 8 -a resnet20 -b 16 --epochs 1 -j 0 -p 0 --device cpu --seed 0"
    return f"--dataset custom --data-root {folder} {lists} {sizes}".split()


def open_split(words: list[str], split: str):
    parser = Parser()
    data_flags.add_data_arguments(parser)
    parser.add_argument("-a", "--arch")
    args, _ = parser.parse_known_args(words)
    return options.build_data_config(options.DataFlags.from_args(args).resolved()).open(split)


def test_holdout_takes_share_of_each_class_but_no_single_image():
    labels = np.repeat(np.arange(4), COUNTS)
    mask = holdout_mask(labels, 0.1)
    assert np.bincount(labels[mask], minlength=4).tolist() == [4, 2, 1, 0]
    assert (holdout_mask(labels, 0.1) == mask).all() and (holdout_mask(labels, 0.2)[mask]).all()


def test_holdout_and_training_images_partition_the_list(words):
    whole = open_split(words, "train")
    train, val, test = (open_split([*words, "--holdout", "0.25"], split) for split in ("train", "val", "test"))
    assert sorted([*train.paths, *val.paths]) == sorted(whole.paths)
    assert val.class_counts.tolist() == [10, 5, 1, 0] and test.class_counts.tolist() == [5] * 4
    assert len({train.digest, val.digest, whole.digest, test.digest}) == 4
    line = val.list_file.read_text().splitlines()[int(val.location(3).rsplit(":", 1)[1]) - 1]
    assert line == f"{val.paths[3].decode()} {val.labels[3]}"  # messages name the line of the list


def test_both_stages_use_holdout_and_record_selection_split(words, tmp_path):
    """Both stages train without the held-out images. A class with a single image keeps its image."""
    records = {}
    for name, more in (("test", []), ("held out", ["--holdout", "0.25"])):
        run = tmp_path / name.replace(" ", "_")
        stage1.main([*words, *more, "--moco-k", "32", "--monitor-freq", "1", "--run-dir", str(run)])
        pretrained = ["--pretrained", str(run / "last.pth.tar")]
        stage2.main([*words, *more, *pretrained, "--run-dir", str(run / "probe")])
        stage2.main([*words, *more, *pretrained, "--compare-heads"])
        records[name] = [json.loads((run / part / "results.json").read_text()) for part in ("probe", "heads")]
        assert [record["chosen"]["on"] for record in records[name]] == [name] * 2
        assert len(log_of(run)) == 1
    assert records["held out"][0]["train_counts"] == [30, 15, 2, 1] and records["test"][0]["train_counts"] == COUNTS
    chosen = records["held out"][0]["chosen"]
    tables = [format_results_table({"x": records["test"][0] | change}) for change in ({}, {"chosen": chosen})]
    assert "on test" in tables[0] and tables[0] != tables[1]
    assert "on test" in (tmp_path / "test" / "heads" / "heads.md").read_text()
    for record in records["test"][1]["heads"].values():  # validation is the test split
        assert record["val_acc1"] == record["acc1"]


def test_holdout_needs_a_class_with_two_images(words, folder, tmp_path):
    (tmp_path / "train.txt").write_text("train_0_0.png 0\ntrain_1_0.png 1\n")
    more = ["--train-txt", str(tmp_path / "train.txt"), "--holdout", "0.1"]
    refusal(lambda: open_split([*words, *more], "val"), "train.txt")


@pytest.mark.parametrize("share", ["0", "0.6", "-1", "x"])
def test_invalid_share_is_refused(share, words, capsys):
    exit_message(lambda: stage1.main([*words, "--holdout", share]), capsys, "--holdout", share)


def test_holdout_is_refused_with_separate_validation_list(words, folder, tmp_path):
    (folder / "val.txt").write_text((folder / "test.txt").read_text())
    more = ["--val-txt", str(folder / "val.txt"), "--holdout", "0.1", "--run-dir", str(tmp_path)]
    refusal(lambda: stage1.main([*words, *more]), "--holdout", 0.1, "val.txt")


def test_missing_validation_list_is_named_with_holdout(words, folder, tmp_path):
    more = ["--val-txt", str(tmp_path / "none.txt"), "--holdout", "0.1", "--run-dir", str(tmp_path)]
    assert "exists" not in refusal(lambda: stage1.main([*words, *more]), "--val-txt", "none.txt", "--holdout")


def test_custom_set_needs_no_validation_list(words, folder, tmp_path):
    """The folder of lists has a training and a test list. Without --holdout, the message names the flag."""
    for split in ("train", "test"):
        (tmp_path / f"custom_{split}.txt").write_text((folder / f"{split}.txt").read_text())
    start, end = words.index("--train-txt"), words.index("--image-size")
    words = [*words[:start], "--splits", str(tmp_path), *words[end:]]
    refusal(lambda: open_split(words, "val"), "custom_val.txt", "--holdout")
    held_out = open_split([*words, "--holdout", "0.25"], "val")
    assert held_out.class_counts.tolist() == [10, 5, 1, 0]
    run = tmp_path / "run"
    flags = [*words, "--holdout", "0.25"]
    stage1.main([*flags, "--moco-k", "32", "--monitor-freq", "1", "--run-dir", str(run)])
    stage2.main([*flags, "--pretrained", str(run / "last.pth.tar"), "--compare-heads"])
    assert json.loads((run / "heads" / "results.json").read_text())["chosen"]["on"] == "held out"
