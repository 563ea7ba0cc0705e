"""`make` finds the images of a folder: split folders, links, hidden files and formats."""

from pathlib import Path

import pytest
from PIL import Image

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
        ({"train/a": 1, "train/b": 1, "test/Typo": 1}, ["Typo"]),
    ],
)
def test_ambiguous_split_folders_are_refused(counts, facts, tmp_path):
    refusal(lambda: make(touch(tmp_path / "images", counts)), *facts)


def test_number_for_existing_split_folder_is_refused(tmp_path):
    source = touch(tmp_path / "images", {"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    refusal(lambda: make(source, "--val 1 --test 2"), "--test 2")


def paths(lists: dict[str, list[tuple[str, int]]]) -> set[str]:
    return {path for pairs in lists.values() for path, _ in pairs}


def test_hidden_and_foreign_files_are_skipped_and_counted(tmp_path, capsys):
    hidden = [".cache/x", "__MACOSX/a", "a/.ipynb_checkpoints", "a/@eaDir", "a/deep/__MACOSX"]
    source = touch(tmp_path / "images", {"a": 3, "b": 4, "a/deep": 1, **dict.fromkeys(hidden, 1)})
    for name in ("b/._0.png", "b/Thumbs.db", "b/.DS_Store", "a/notes.txt", "top.png"):
        (source / name).touch()
    lists = make(source, "--val 1 --test 1")
    assert paths(lists) == {f"a/{i}.png" for i in range(3)} | {"a/deep/0.png"} | {f"b/{i}.png" for i in range(4)}
    line_with(capsys.readouterr().out, "skipped", "8 hidden", "1 .txt", "1 outside class folders")


def test_every_format_of_pillow_is_used(tmp_path):
    """Extensions may be in upper case, and a file without extension is recognised by its content."""
    names = ["1.jfif", "2.gif", "3.JPEG", "4.WebP", "5.bmp", "6.tif", "7.png", "8.ppm", "9.mpo"]
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (2, 2)).save(tmp_path / "images" / folder / name)
        Image.new("RGB", (2, 2)).save(tmp_path / "images" / folder / "scan", "jpeg")
        (tmp_path / "images" / folder / "LICENSE").write_text("free")
    found = paths(make(tmp_path / "images", "--val 1 --test 1"))
    assert found == {f"{folder}/{name}" for folder in ("a", "b") for name in [*names, "scan"]}


def test_links_are_followed_once(tmp_path, capsys):
    """The class folder b and the subfolder a/more are links. Links to an outer folder would loop."""
    elsewhere = touch(tmp_path / "elsewhere", {"b": 4, "more": 2})
    source = touch(tmp_path / "images", {"a": 2})
    (source / "b").symlink_to(elsewhere / "b")
    (source / "a" / "more").symlink_to(elsewhere / "more")
    for name, target in {"loop": source / "a", "up": source, "again": elsewhere / "more", "gone": "nowhere"}.items():
        (source / "a" / name).symlink_to(target)
    (elsewhere / "more" / "outside").symlink_to(tmp_path)
    for link in (source / "itself", source / "a" / "itself.png"):
        link.symlink_to(link)
    found = paths(make(source, "--val 1 --test 1"))
    assert {path.split("/")[0] for path in found} == {"a", "b"} and len(found) == 8
    line_with(capsys.readouterr().out, "skipped", "4 links", "3 broken")


def test_class_without_usable_images_is_refused(tmp_path):
    source = touch(tmp_path / "images", {"a": 3, "b": 0})
    (source / "b" / "photo.heic").touch()
    refusal(lambda: make(source), source, "b", "--min-images")
