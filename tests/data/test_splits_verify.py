"""`verify`: every way a list or a folder of images can be wrong gets its own verdict."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_inat.images import LongTailDataset
from imagenet_inat.splits import __main__ as splits
from tests.verifying import run, verdict, wrong_lines
from utils.errors import InputError

CLASSES = {"ant": 40, "blüte": 25, "red fish": 20}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of class folders, images/, and lists made of it, lists/."""
    folder = tmp_path_factory.mktemp("made")
    for name, count in CLASSES.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 6), (i, 0, 0)).save(folder / "images" / name / f"photo {i}.png")
    command = f"make {folder}/images --imbalance 3 --val 2 --test 3 --output {folder}/lists"
    splits.main(command.split())
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of `made` to spoil."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_made_split_is_right_and_known_by_its_hash(made, capsys):
    code, out = verdict(made, capsys, "--decode")
    assert code == 0 and "nothing is wrong" in out
    assert out.count("the known list, byte for byte") == 3
    assert "3 classes, 34 … 11 images a class: 0 many, 1 medium, 2 few" in out
    assert "custom_train.txt: all 64 opened" in out and out.count("no image of") == 3


def swap(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


def flip_first(lines: list[str]) -> list[str]:
    return [lines[0][:-1] + "2", *lines[1:]]


def tabs(lines: list[str]) -> list[str]:
    return ["\t".join(line.rsplit(" ", 1)) for line in lines]


WRITTEN_OTHERWISE = {
    "CRLF": (lambda text: text.replace("\n", "\r\n"), "Windows line ends"),
    "BOM": (lambda text: "\ufeff" + text, "a byte-order mark"),
    "tabs": (lambda text: "\n".join(tabs(text.splitlines())) + "\n", "tabs"),
    "two blanks": (lambda text: re.sub(r" (\d)$", r"  \1 ", text, flags=re.MULTILINE), "other blanks"),
    "missing newline": (lambda text: text.removesuffix("\n"), "no end of the last line"),
    "BOM and CRLF": (lambda text: "\ufeff" + text.replace("\n", "\r\n"), "a byte-order mark, Windows line ends"),
}


@pytest.mark.parametrize("change", WRITTEN_OTHERWISE)
def test_the_same_list_written_otherwise_is_no_fault_but_is_said(change, copy, capsys):
    mutate, said = WRITTEN_OTHERWISE[change]
    file = copy / "lists" / "custom_train.txt"
    original = LongTailDataset(copy / "images", file, 3, None)
    file.write_bytes(mutate(file.read_text(encoding="utf-8")).encode())
    code, out = verdict(copy, capsys)
    assert code == 0 and f"the known list, written otherwise ({said}); it is read the same" in out
    again = LongTailDataset(copy / "images", file, 3, None)
    assert np.array_equal(again.paths, original.paths) and np.array_equal(again.labels, original.labels)


CHANGED = {
    "shuffled": (swap, ["as many bytes and lines, so lines were moved, or labels or names exchanged"]),
    "a flipped label": (flip_first, ["as many bytes and lines, so lines were moved, or labels or names exchanged"]),
    "another name": (lambda lines: [lines[0].replace("photo", "Photograph"), *lines[1:]], ["as many lines", "missing"]),
    "a line less": (lambda lines: lines[:-1], ["not the known list: 63 lines, .* expected 64 lines"]),
    "a repeated line": (
        lambda lines: [*lines, lines[2]],
        ["not the known list", "images more than once: ant/photo .*lines 3, 65"],
    ),
    "a line repeated with another label": (
        lambda lines: [*lines, lines[2][:-1] + "2"],
        ["not the known list", r"lines 3, 65 with labels 0, 2"],
    ),
    "a gap": (lambda lines: [line for line in lines if line[-1] != "1"], ["no line has the label 1, .* largest is 2"]),
    "a negative label": (lambda lines: [*lines, "ant/photo 1.png -1"], [r":65: label -1, expected 0 to 64"]),
    "no label": (lambda lines: ["ant/photo.png", *lines], [r':1: found "ant/photo.png", expected "<path> <label>"']),
    "a way out": (lambda lines: ["../secret.png 0", *lines], [r':1: "../secret.png" leaves the data root']),
    "another root": (lambda lines: ["/etc/secret.png 0", *lines], [r':1: "/etc/secret.png" leaves the data root']),
    "empty": (lambda lines: [], ["empty"]),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_list_is_wrong_and_named(change, copy, capsys):
    mutate, said = CHANGED[change]
    file = copy / "lists" / "custom_train.txt"
    lines = mutate(file.read_text(encoding="utf-8").splitlines())
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    code, out = verdict(copy, capsys)
    assert code == 1 and f"{len(wrong_lines(out))} thing" in out.splitlines()[-1]
    for part in said:
        assert any(re.search(part, line) for line in wrong_lines(out)), (part, out)


def test_without_a_hash_names_and_labels_are_taken_as_they_are_and_it_is_said(copy, capsys):
    (copy / "lists" / "made.json").unlink()
    code, out = verdict(copy, capsys)
    assert code == 0 and out.count("no SHA-256 of it is known here") == 3


def test_a_relabelled_image_is_found_without_a_hash_where_folders_are_classes(tmp_path, capsys):
    lines = [f"{c}/{i}.png {c}" for c in range(4) for i in range(50)]
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "custom_train.txt"
    for label, code in ((1, 0), (3, 1)):
        lines[60] = f"1/10.png {label}"
        file.write_text("\n".join(lines) + "\n")
        flags = ["--train-txt", str(file), "--val-txt", str(file), "--test-txt", str(file)]
        found, out = run(["verify", "custom", *flags], capsys)
        assert found == code
    assert (
        "1 images with another label than their folder: line 61, 1/10.png with label 3, others in its folder 1" in out
    )


def test_an_image_in_two_lists_is_found(copy, capsys):
    train, val = (copy / "lists" / f"custom_{split}.txt" for split in ("train", "val"))
    line = train.read_text(encoding="utf-8").splitlines()[0]
    val.write_text(val.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    code, out = verdict(copy, capsys)
    name = line.rsplit(" ", 1)[0]
    assert code == 1 and f"1 images are in custom_train.txt and in custom_val.txt: {name}" in out


def test_missing_empty_and_broken_images_are_counted_and_five_are_named(copy, capsys):
    names = [line.rsplit(" ", 1)[0] for line in (copy / "lists" / "custom_train.txt").read_text("utf-8").splitlines()]
    for name in names[:7]:
        (copy / "images" / name).unlink()
    (copy / "images" / names[7]).write_bytes(b"")
    (copy / "images" / names[8]).write_bytes(b"no image")
    code, out = verdict(copy, capsys)
    assert code == 1
    assert f"7 of 64 images missing: {', '.join(names[:5])}, and 2 more" in out
    assert f"1 of 64 images empty: {names[7]}" in out and "unreadable" not in out
    _, out = verdict(copy, capsys, "--decode")
    assert f"1 of 64 images unreadable: {names[8]}: cannot identify image file" in out


def test_a_root_that_is_not_there_is_said(copy, capsys):
    shutil.rmtree(copy / "images")
    code, out = verdict(copy, capsys)
    assert code == 1 and "no such folder, expected the root of your images" in out


def test_a_record_that_is_none_is_refused_in_one_line(copy):
    (copy / "lists" / "made.json").write_text("[]")
    with pytest.raises(InputError, match="not a record that `make` wrote"):
        splits.main(["verify", "custom", "--splits", str(copy / "lists")])


def test_decode_needs_a_root():
    with pytest.raises(InputError, match="--decode opens images: say where they are with --data-root"):
        splits.main(["verify", "imagenet", "--decode"])
