"""--holdout: a part of the training list to choose by, where the test list would have been."""

import json

import numpy as np
import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import flags, options
from imagenet_inat.holdout import held_out
from tests.refusals import exit_message, refusal
from tests.stopping import log_of
from utils.measure.results import results_table
from utils.parser import Parser

COUNTS = [40, 20, 3, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of four classes in plain colours and noise; the test list is the validation list too."""
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


def opened(words: list[str], split: str):
    parser = Parser()
    flags.add_data_arguments(parser)
    parser.add_argument("-a", "--arch")
    args, _ = parser.parse_known_args(words)
    options.resolve_defaults(args)
    return options.data_of(args).open(split)


def test_a_share_of_each_class_and_of_one_image_nothing():
    labels = np.repeat(np.arange(4), COUNTS)
    mask = held_out(labels, 0.1)
    assert np.bincount(labels[mask], minlength=4).tolist() == [4, 2, 1, 0]
    assert (held_out(labels, 0.1) == mask).all() and (held_out(labels, 0.2)[mask]).all()


def test_no_image_is_in_both_and_none_is_lost(words):
    whole = opened(words, "train")
    train, val, test = (opened([*words, "--holdout", "0.25"], split) for split in ("train", "val", "test"))
    assert sorted([*train.paths, *val.paths]) == sorted(whole.paths)
    assert val.class_counts.tolist() == [10, 5, 1, 0] and test.class_counts.tolist() == [5] * 4
    assert len({train.digest, val.digest, whole.digest, test.digest}) == 4
    line = val.list_file.read_text().splitlines()[int(val.line(3).rsplit(":", 1)[1]) - 1]
    assert line == f"{val.paths[3].decode()} {val.labels[3]}"  # a message names the line of the list


def test_both_stages_leave_it_out_and_results_say_on_what_they_chose(words, tmp_path):
    """An epoch of stage 1 is shorter by it; the classifier trains on the rest, and the class of one image stays."""
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
    tables = [results_table({"x": records["test"][0] | change}) for change in ({}, {"chosen": chosen})]
    assert "on test" in tables[0] and tables[0] != tables[1]
    assert "on test" in (tmp_path / "test" / "heads" / "heads.md").read_text()
    for record in records["test"][1]["heads"].values():  # of heads, by validation that is the test split
        assert record["val_acc1"] == record["acc1"]


def test_where_no_class_has_two_images_nothing_can_be_held_out(words, folder, tmp_path):
    (tmp_path / "train.txt").write_text("train_0_0.png 0\ntrain_1_0.png 1\n")
    more = ["--train-txt", str(tmp_path / "train.txt"), "--holdout", "0.1"]
    refusal(lambda: opened([*words, *more], "val"), "train.txt")


@pytest.mark.parametrize("share", ["0", "0.6", "-1", "x"])
def test_a_share_that_is_none_is_refused(share, words, capsys):
    exit_message(lambda: stage1.main([*words, "--holdout", share]), capsys, "--holdout", share)


def test_a_set_with_a_validation_list_has_it_to_choose_by(words, folder, tmp_path):
    (folder / "val.txt").write_text((folder / "test.txt").read_text())
    more = ["--val-txt", str(folder / "val.txt"), "--holdout", "0.1", "--run-dir", str(tmp_path)]
    refusal(lambda: stage1.main([*words, *more]), "--holdout", 0.1, "val.txt")
