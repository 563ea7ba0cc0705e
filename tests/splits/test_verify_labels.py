"""`verify` compares labels with folders, and pictures with each other."""

import numpy as np
import pytest
from PIL import Image

from tests.refusals import line_with
from tests.verifying import run_splits, run_verify, wrong_lines


def verify_lists(tmp_path, capsys, **lists: list[str]) -> list[str]:
    """Write the lists and verify them without images; return the problems."""
    (tmp_path / "lists").mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        lines = lists.get(split) or [f"{split}/{line}" for line in lists["train"]]
        (tmp_path / "lists" / f"custom_{split}.txt").write_text("\n".join(lines) + "\n")
    return wrong_lines(run_splits(["verify", "custom", "--splits", str(tmp_path / "lists")], capsys)[1])


def class_list(sizes: list[int], prefix: str = "", name: str = "c{}") -> list[str]:
    return [f"{prefix}{name.format(c)}/{i}.png {c}" for c, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize("prefix", ["", "images/{}/"])
def test_folder_with_other_label_in_other_list_is_found(prefix, tmp_path, capsys):
    """Training labels follow the numbers of the folders, validation labels their spelling: 0, 1, 10, 11, 2, …"""
    spelling = sorted(map(str, range(12)))
    train = [f"{prefix.format('train')}{c}/{i}.png {c}" for c in range(12) for i in range(5)]
    val = [f"{prefix.format('val')}{c}/v{i}.png {spelling.index(str(c))}" for c in range(12) for i in range(2)]
    wrong = "\n".join(verify_lists(tmp_path, capsys, train=train, val=val, test=class_list([1] * 12, "x/", "{}")))
    line_with(wrong, "10 of 12 folders", "10 (10 and 2)", "custom_train.txt", "custom_val.txt")


@pytest.mark.parametrize("wrong_lines_of_100", [1, 10, 30, 60])
def test_wrong_labels_are_found_at_any_share(wrong_lines_of_100, tmp_path, capsys):
    train, rng = class_list([100] * 8), np.random.default_rng(0)
    changed = [n for n in range(len(train)) if n % 100 < wrong_lines_of_100]
    for n in changed:
        train[n] = f"{train[n][:-1]}{rng.choice([c for c in range(8) if c != int(train[n][-1])])}"
    wrong = "\n".join(verify_lists(tmp_path, capsys, train=train, val=class_list([2] * 8, "val/")))
    line_with(wrong, "custom_train.txt", f"{len(changed)} of 800", "line 1,")


def test_wrong_label_is_found_in_short_list(tmp_path, capsys):
    wrong = verify_lists(tmp_path, capsys, train=class_list([3, 3]), val=["c0/v.png 0", "c1/v.png 1", "c0/w.png 1"])
    line_with("\n".join(wrong), "custom_val.txt", "c0/w.png", "label 1")


@pytest.mark.parametrize("folders", [1, 2, 5, 10, 40])
def test_folders_that_are_not_classes_are_accepted(folders, tmp_path, capsys):
    """Folders are random. The largest of ten classes has half of the images."""
    rng = np.random.default_rng(0)
    labels = [0] * 200 + [1] * 100 + list(range(2, 10)) * 12
    lists = {
        split: [f"{split}/day{rng.integers(folders)}/{split}{i}.png {label}" for i, label in enumerate(labels)]
        for split in ("train", "val", "test")
    }
    assert not verify_lists(tmp_path, capsys, **lists)


def test_flat_validation_folder_is_accepted(tmp_path, capsys):
    """As Places: the training list has class folders, the validation list one folder for all images."""
    val = [f"val_large/{i}.jpg {i % 6}" for i in range(60)]
    assert not verify_lists(tmp_path, capsys, train=class_list([9] * 6), val=val, test=class_list([2] * 6, "test/"))


def test_hidden_files_in_lists_are_found(tmp_path, capsys):
    train = [*class_list([4, 4]), "c0/._0.png 0", "c1/.ipynb_checkpoints/0-checkpoint.png 1", "./c1/fine.png 1"]
    wrong = "\n".join(verify_lists(tmp_path, capsys, train=train, val=class_list([2, 2], "val/")))
    line_with(wrong, "2 hidden", "line 9, c0/._0.png", "line 10")


def test_same_picture_under_other_name_is_found(tmp_path, capsys):
    """The copies differ as files: one is a PNG, one a BMP. A copy within a class and list is accepted."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in ("a", "b"):
            (tmp_path / "images" / split / c).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / c / f"{i}.png")

    def copy(source: str, target: str) -> None:
        Image.open(tmp_path / "images" / source).save(tmp_path / "images" / target)

    copy("train/a/0.png", "train/a/copy.bmp")
    run_splits(["make", str(tmp_path / "images"), "--output", str(tmp_path / "lists")], capsys)
    code, _ = run_verify(tmp_path, capsys, "--decode")
    assert code == 0
    copy("train/a/1.png", "test/a/1.png")
    copy("train/a/2.png", "train/b/2.png")
    wrong = "\n".join(wrong_lines(run_verify(tmp_path, capsys, "--decode")[1]))
    line_with(wrong, "two lists", "train/a/1.png", "test/a/1.png")
    line_with(wrong, "two classes", "train/a/2.png", "train/b/2.png")
