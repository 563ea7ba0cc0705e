"""`verify`: every error in a list or a folder of images gets its own line."""

import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.known import fingerprint
from imagenet_inat.splits import __main__ as splits
from tests.refusals import line_with, refusal
from tests.verifying import known_lists, lines_marked, run_splits, run_verify, wrong_lines

CLASSES = {"ant": 40, "blüte": 25, "red fish": 20}


@pytest.fixture(scope="module")
def valid_folder(tmp_path_factory) -> Path:
    """Write class folders in images/ and make lists/ from them."""
    folder = tmp_path_factory.mktemp("made")
    for label, (name, count) in enumerate(CLASSES.items()):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 6), (i, 80 * label, 0)).save(folder / "images" / name / f"photo {i}.png")
    command = f"make {folder}/images --imbalance 3 --val 2 --test 3 --output {folder}/lists"
    splits.main(command.split())
    return folder


@pytest.fixture
def folder(valid_folder, tmp_path) -> Path:
    """Return a copy of `valid_folder` that a test may damage."""
    shutil.copytree(valid_folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_made_split_is_valid_and_known_by_hash(valid_folder, capsys):
    code, out = run_verify(valid_folder, capsys, "--decode")
    assert code == 0 and not wrong_lines(out) and not lines_marked(out, "note")
    assert len(known_lists(out)) == 3
    ok_lines = "\n".join(lines_marked(out, "ok"))
    line_with(ok_lines, "3 classes", 34, 11, "0 many", "1 medium", "2 few")
    line_with(ok_lines, "custom_train.txt: ", 64)
    for one, other in combinations(("train", "val", "test"), 2):
        line_with(ok_lines, f"custom_{one}.txt", f"custom_{other}.txt")


def swap(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


def flip_first(lines: list[str]) -> list[str]:
    return [lines[0][:-1] + "2", *lines[1:]]


def use_tabs(lines: list[str]) -> list[str]:
    return ["\t".join(line.rsplit(" ", 1)) for line in lines]


TEXT_FORMATS = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "BOM": lambda text: "\ufeff" + text,
    "tabs": lambda text: "\n".join(use_tabs(text.splitlines())) + "\n",
    "two blanks": lambda text: re.sub(r" (\d)$", r"  \1 ", text, flags=re.MULTILINE),
    "missing newline": lambda text: text.removesuffix("\n"),
    "BOM and CRLF": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
}


def test_same_list_in_other_text_format_is_only_noted(folder, capsys):
    """Each text format gets its own note."""
    file = folder / "lists" / "custom_train.txt"
    original = LongTailDataset(folder / "images", file, 3, None)
    text, notes = file.read_text(encoding="utf-8"), set()
    for change in TEXT_FORMATS.values():
        file.write_bytes(change(text).encode())
        code, out = run_verify(folder, capsys)
        assert code == 0 and len(known_lists(out)) == 2
        notes.update(lines_marked(out, "note"))
        again = LongTailDataset(folder / "images", file, 3, None)
        assert np.array_equal(again.paths, original.paths) and np.array_equal(again.labels, original.labels)
    assert len(notes) == len(TEXT_FORMATS)


# For each change: the function that changes the lines, and the facts of each line that `verify` reports.
CHANGED = {
    "shuffled": (swap, [["SHA-256", 64]]),
    "flipped label": (flip_first, [["SHA-256", 64]]),
    "another name": (
        lambda lines: [lines[0].replace("photo", "Photograph"), *lines[1:]],
        [["SHA-256", 64], ["Photograph", 1]],
    ),
    "missing line": (lambda lines: lines[:-1], [["SHA-256", 63, 64]]),
    "repeated line": (lambda lines: [*lines, lines[2]], [["SHA-256", 65, 64], ["ant/photo ", "3, 65"]]),
    "line repeated with another label": (
        lambda lines: [*lines, lines[2][:-1] + "2"],
        [["SHA-256", 65, 64], ["ant/photo ", "3, 65", "0, 2"]],
    ),
    "class without images": (lambda lines: [line for line in lines if line[-1] != "1"], [["label 1", 2]]),
    "negative label": (lambda lines: [*lines, "ant/photo 1.png -1"], [[65, -1, 64]]),
    "no label": (lambda lines: ["ant/photo.png", *lines], [[1, "ant/photo.png"]]),
    "path outside the root": (lambda lines: ["../secret.png 0", *lines], [[1, "../secret.png"]]),
    "absolute path": (lambda lines: ["/etc/secret.png 0", *lines], [[1, "/etc/secret.png"]]),
    "empty": (lambda lines: [], [["custom_train.txt"]]),
}


def wrong_after(change: str, folder: Path, capsys) -> str:
    """Change the training list; return the lines that `verify` reports as wrong."""
    file = folder / "lists" / "custom_train.txt"
    text = file.read_text(encoding="utf-8")
    lines = CHANGED[change][0](text.splitlines())
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    code, out = run_verify(folder, capsys)
    wrong = wrong_lines(out)
    assert code == 1 and str(len(wrong)) in out.splitlines()[-1]
    file.write_text(text, encoding="utf-8")
    return "\n".join(wrong)


@pytest.mark.parametrize("change", CHANGED)
def test_changed_list_is_reported(change, folder, capsys):
    wrong = wrong_after(change, folder, capsys)
    for facts in CHANGED[change][1]:
        line_with(wrong, *facts)


def test_likely_kind_of_change_is_reported(folder, capsys):
    """It is derived from the number of bytes and lines. The end of the message differs for each kind of change."""
    known = fingerprint((folder / "lists" / "custom_train.txt").read_bytes()).sha256[:16]

    def likely(change: str) -> str:
        return line_with(wrong_after(change, folder, capsys), "SHA-256").partition(known)[2]

    assert likely("shuffled") == likely("flipped label")
    assert len({likely(change) for change in ("shuffled", "another name", "missing line")}) == 3


def test_lists_without_known_hash_are_accepted_with_note(folder, capsys):
    (folder / "lists" / "made.json").unlink()
    code, out = run_verify(folder, capsys)
    assert code == 0 and not known_lists(out)
    assert len([note for note in lines_marked(out, "note") if "SHA-256" in note]) == 3


def test_relabelled_image_is_found_when_folders_are_classes(tmp_path, capsys):
    lines = [f"{c}/{i}.png {c}" for c in range(4) for i in range(50)]
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "custom_train.txt"
    for label, code in ((1, 0), (3, 1)):
        lines[60] = f"1/10.png {label}"
        file.write_text("\n".join(lines) + "\n")
        flags = ["--train-txt", str(file), "--val-txt", str(file), "--test-txt", str(file)]
        exit_code, out = run_splits(["verify", "custom", *flags], capsys)
        assert exit_code == code
    line_with("\n".join(wrong_lines(out)), 1, "line 61", "1/10.png", "label 3")


def test_image_in_two_lists_is_found(folder, capsys):
    train, val = (folder / "lists" / f"custom_{split}.txt" for split in ("train", "val"))
    line = train.read_text(encoding="utf-8").splitlines()[0]
    val.write_text(val.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    code, out = run_verify(folder, capsys)
    name = line.rsplit(" ", 1)[0]
    assert code == 1
    line_with("\n".join(wrong_lines(out)), 1, "custom_train.txt", "custom_val.txt", name)


def test_missing_empty_and_broken_images_are_counted_and_named(folder, capsys):
    names = [line.rsplit(" ", 1)[0] for line in (folder / "lists" / "custom_train.txt").read_text("utf-8").splitlines()]
    for name in names[:7]:
        (folder / "images" / name).unlink()
    (folder / "images" / names[7]).write_bytes(b"")
    (folder / "images" / names[8]).write_bytes(b"no image")
    code, out = run_verify(folder, capsys)
    assert code == 1
    wrong = "\n".join(wrong_lines(out))
    line_with(wrong, "7 of 64", ", ".join(names[:5]), 2)
    line_with(wrong, "1 of 64", names[7])
    assert names[5] not in wrong
    for flags in ([], ["--decode"]):
        _, out = run_verify(folder, capsys, *flags)
        line_with(out, "1 of 64", names[8], "cannot identify image file")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image_is_found_without_decode(suffix, tmp_path, capsys):
    """Complete images with data after their end, as phones write them, are accepted."""
    (tmp_path / "lists").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"trailer.{suffix}").write_bytes(whole + b"video" * 100)
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    file = tmp_path / "lists" / "custom_train.txt"
    file.write_text("".join(f"{name}.{suffix} {label}\n" for label, name in enumerate(("whole", "trailer", "cut"))))
    flags = [f"--{split}-txt={file}" for split in ("train", "val", "test")]
    code, out = run_splits(["verify", "custom", "--data-root", str(tmp_path), *flags], capsys)
    assert code == 1
    line_with("\n".join(wrong_lines(out)), "1 of 3", f"cut.{suffix}", "truncated")


def test_decode_counts_each_kind_of_image_in_one_line(folder, capsys):
    names = [line.rsplit(" ", 1)[0] for line in (folder / "lists" / "custom_train.txt").read_text("utf-8").splitlines()]
    image, exif = Image.new("RGB", (8, 6), "red"), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.full((6, 8), 50_000, np.uint16))
    saved = [deep, deep, image.convert("P"), image.convert("RGBA"), image]
    for name, changed in zip(names, saved, strict=False):
        changed.save(folder / "images" / name, exif=exif if changed is image else b"")
    image.convert("CMYK").save(folder / "images" / names[5], "TIFF")
    image.save(folder / "images" / names[6], save_all=True, append_images=[Image.new("RGB", (8, 6))])
    code, out = run_verify(folder, capsys, "--decode")
    assert code == 0
    counts = ("2 16-bit", "1 palette", "1 transparent", "1 EXIF-rotated", "1 CMYK", "1 animated")
    line_with("\n".join(lines_marked(out, "note")), "custom_train.txt", *counts)


def test_decode_reads_each_image_once(valid_folder, capsys, monkeypatch):
    decoded, prepare = Counter(), PngImageFile.load_prepare
    monkeypatch.setattr(
        PngImageFile, "load_prepare", lambda image: (decoded.update([str(image.filename)]), prepare(image))
    )
    run_verify(valid_folder, capsys, "--decode")
    assert len(decoded) >= 64 and set(decoded.values()) == {1}


def test_missing_data_root_is_reported(folder, capsys):
    shutil.rmtree(folder / "images")
    code, out = run_verify(folder, capsys)
    assert code == 1 and wrong_lines(out)


def test_invalid_record_is_refused(folder):
    (folder / "lists" / "made.json").write_text("[]")
    refusal(lambda: splits.main(["verify", "custom", "--splits", str(folder / "lists")]), "made.json")


def test_decode_needs_data_root():
    refusal(lambda: splits.main(["verify", "imagenet", "--decode"]), "--decode", "--data-root")
