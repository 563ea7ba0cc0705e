"""`make` finds the images of a folder: split folders, links, hidden files and formats."""

from pathlib import Path

import pytest

from imagenet_inat.lists.format import read_split
from imagenet_inat.splits import __main__ as splits
from tests.refusals import line_with, refusal

SPLITS = ("train", "val", "test")


def touch(root: Path, counts: dict[str, int]) -> Path:
    """Write empty images root/FOLDER/0.png, 1.png, …; counts: folder -> number of images."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").touch()
    return root


def make(source: Path, flags: str = "") -> dict[str, list[tuple[str, int]]]:
    """Make lists beside the source, with all images if the classes have equal sizes; return (path, label) pairs."""
    lists = source.with_name("lists")
    splits.main(["make", str(source), "--output", str(lists), "--imbalance", "1", *flags.split()])
    read = {split: read_split(lists / f"custom_{split}.txt", None) for split in SPLITS}
    return {split: [(path.decode(), label) for path, label in zip(*pair, strict=True)] for split, pair in read.items()}


@pytest.mark.parametrize("val", ["val", "Valid", "VALIDATION"])
def test_split_folders_become_lists_with_the_same_labels(val, tmp_path, capsys):
    """Class c has no validation image. Its label is the same in training and test list."""
    counts = {"Train/b": 2, "Train/c": 2, "Train/a": 2, f"{val}/b": 1, f"{val}/a": 3, "TEST/c": 2, "TEST/a": 1}
    lists = make(touch(tmp_path / "images", counts))
    for split, folder in (("train", "Train"), ("val", val), ("test", "TEST")):
        expected = {
            (f"{name}/{i}.png", "abc".index(name[-1]))
            for name, count in counts.items()
            for i in range(count)
            if name.startswith(folder)
        }
        assert set(lists[split]) == expected and len(lists[split]) == len(expected)
    line_with(capsys.readouterr().out, "Train/", f"{val}/", "TEST/", "6 images of 3 classes", "4 images of 2 classes")


def test_missing_split_folder_is_split_off_from_train(tmp_path, capsys):
    source = touch(tmp_path / "images", {"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    lists = make(source, "--val 1")
    assert {split: len(pairs) for split, pairs in lists.items()} == {"train": 8, "val": 2, "test": 4}
    assert all(path.startswith("test/") for path, _ in lists["test"])
    line_with(capsys.readouterr().out, "recognised", "val: split off")


def test_split_name_among_classes_is_a_class(tmp_path):
    """A train is also a vehicle."""
    lists = make(touch(tmp_path / "images", {"bus": 3, "train": 3}), "--val 1 --test 1")
    assert {(path.split("/")[0], label) for path, label in lists["train"]} == {("bus", 0), ("train", 1)}


@pytest.mark.parametrize(
    ("counts", "facts"),
    [
        ({"train/a": 1, "train/b": 1, "val/a": 1, "extra/c": 1}, ["train, val", "extra"]),
        ({"val/a": 1, "test/a": 1}, ["train"]),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}, ["val and valid"]),
        ({"train": 3, "val": 3}, ["train", "class"]),
        ({"train/a": 1, "train/b": 1, "test/Typo": 1}, ["train/Typo"]),
    ],
)
def test_ambiguous_split_folders_are_refused(counts, facts, tmp_path):
    refusal(lambda: make(touch(tmp_path / "images", counts)), *facts)


def test_number_for_existing_split_folder_is_refused(tmp_path):
    source = touch(tmp_path / "images", {"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    refusal(lambda: make(source, "--val 1 --test 2"), "--test 2")
