"""Characters in fonts: which fonts are used, how they are rendered and split. The fonts are those of Matplotlib."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.paths import ListFlags, find_lists
from imagenet_inat.sets import glyphs
from imagenet_inat.splits import __main__ as splits
from tests.refusals import refusal

SPEC, FOLDER = REGISTRY["glyphs"], Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS, SERIF, MONO, STIX, BOLD, BOLD_SERIF, BOLD_MONO, INCOMPLETE = (
    FOLDER / f"{name}.ttf"
    for name in (
        *("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral"),
        *("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "cmr10"),
    )
)


@pytest.fixture
def few_fonts(monkeypatch):
    """One font for validation and for test, and two for training."""
    monkeypatch.setattr(glyphs, "FONTS", {"test": 1, "val": 1, "train": 2})
    monkeypatch.setattr(glyphs, "LARGEST", 2)
    monkeypatch.setattr(glyphs, "find_families", lambda: {"a": [SANS], "b": [SERIF], "c": [STIX], "d": [MONO]})


def lists_of(data_root: Path):
    return find_lists(SPEC, ListFlags(data_root=str(data_root), imbalance=2))


def test_fonts_with_all_characters_are_found_by_family(monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    files = [MONO, STIX, SANS, INCOMPLETE, tmp_path / "broken.ttf"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file) for file in files])
    assert glyphs.find_families() == {"deja": sorted([MONO, SANS]), "stix": [STIX]}


def test_splits_have_no_family_in_common(monkeypatch):
    families = {"a": [SANS, BOLD], "b": [SERIF, BOLD_SERIF], "c": [STIX], "d": [MONO, BOLD_MONO]}
    monkeypatch.setattr(glyphs, "FONTS", {"test": 1, "val": 1, "train": 3})
    chosen = glyphs.choose_fonts(families)
    assert {split: len(fonts) for split, fonts in chosen.items()} == {"test": 1, "val": 1, "train": 3}
    used = [{next(name for name, files in families.items() if f in files) for f in fonts} for fonts in chosen.values()]
    assert sum(map(len, used)) == len(set.union(*used))


def test_family_gives_a_limited_number_of_fonts(monkeypatch):
    monkeypatch.setattr(glyphs, "MOST_PER_FAMILY", 1)
    monkeypatch.setattr(glyphs, "FONTS", {"test": 1, "val": 1, "train": 2})
    families = {"a": [SANS, BOLD], "b": [SERIF, BOLD_SERIF], "c": [STIX], "d": [MONO, BOLD_MONO]}
    assert [len(fonts) for fonts in glyphs.choose_fonts(families).values()] == [1, 1, 2]
    refusal(lambda: glyphs.choose_fonts({"a": [SANS, BOLD, SERIF], "b": [STIX], "c": [MONO]}), 3, 4)


@pytest.mark.parametrize("changed", [0, 30])
def test_copies_of_a_font_are_used_once(changed, monkeypatch, tmp_path):
    """A copy under another name may differ in some characters."""
    copy, original = Path(shutil.copy(MONO, tmp_path / "copy.ttf")), glyphs.render(MONO)
    drawn = original.copy()
    drawn[:changed, 0, 0] = 255
    monkeypatch.setattr(glyphs, "render", lambda file: {copy: drawn, MONO: original}[file])
    monkeypatch.setattr(glyphs, "FONTS", {"test": 1, "val": 0, "train": 1})
    refusal(lambda: glyphs.choose_fonts({"a": [MONO], "b": [copy]}), 1, 2)
    drawn[:] = 255 - drawn
    assert [len(fonts) for fonts in glyphs.choose_fonts({"a": [MONO], "b": [copy]}).values()] == [1, 0, 1]


def test_too_few_fonts_are_refused_before_writing(few_fonts, monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "find_families", lambda: {"a": [SANS], "b": [SERIF], "c": [STIX]})
    refusal(lambda: lists_of(tmp_path), "glyphs", 3, 3, 4)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("file", [SANS, STIX], ids=lambda file: file.stem)
def test_characters_are_rendered_whole_and_differ(file):
    """No character touches the border. A capital is higher than its small letter, and p reaches below the line."""
    images = dict(zip(glyphs.characters(), glyphs.render(file), strict=True))
    assert images.keys() == {*glyphs.CHARACTERS} and len(images) == glyphs.NUM_CLASSES
    stacked = np.stack([*images.values()])
    assert stacked.shape == (100, 28, 28) and (stacked.reshape(100, -1).max(1) > 100).all()
    assert not stacked[:, [0, -1]].any() and not stacked[:, :, [0, -1]].any()
    rows = {character: np.flatnonzero(image.any(1)) for character, image in images.items()}
    assert rows["S"][0] < rows["s"][0] and abs(rows["S"][-1] - rows["s"][-1]) <= 1 and rows["p"][-1] > rows["S"][-1]


def test_font_with_equal_characters_is_not_used(monkeypatch):
    monkeypatch.setattr(glyphs, "characters", lambda: ["a"] * 100)
    assert glyphs.render(SANS) is None


def test_lists_name_the_rendered_images(few_fonts, tmp_path):
    root, files, _ = lists_of(tmp_path)
    fonts: dict[str, list[np.ndarray]] = {}
    for line in (root / "images" / "fonts.txt").read_text().splitlines():
        split, file = line.split("\t")
        fonts.setdefault(split, []).append(glyphs.render(Path(file)))
    counts = {}
    for split, rendered in fonts.items():
        data = LongTailDataset(root, files[split], 100, np.asarray)
        counts[split] = data.class_counts.tolist()
        for number in range(0, len(data), 7):
            image, label = data[number]
            assert any((image[..., 0] == images[label]).all() for images in rendered)
        if split == "train":  # the two images of the largest class
            assert not (data[0][0] == data[1][0]).all() and data[0][1] == data[1][1] == 0
    assert counts["test"] == counts["val"] == [1] * 100
    assert counts["train"] == [2] + [1] * 99  # int(2 · 2^(−c/99))


def test_split_seed_selects_other_fonts_of_small_classes(few_fonts, tmp_path):
    """Images, and the lists of validation and test, which use all fonts, are the same."""
    first = lists_of(tmp_path).files
    other = find_lists(SPEC, ListFlags(data_root=str(tmp_path), imbalance=2, split_seed=1)).files
    assert other["train"].read_text() != first["train"].read_text()
    assert all(other[split].read_text() == first[split].read_text() for split in ("val", "test"))


def test_lists_are_verified_and_name_their_classes(few_fonts, tmp_path, capsys):
    splits.main(["verify", "glyphs", "--data-root", str(tmp_path), "--imbalance", "2"])
    made = (lists_of(tmp_path).root / "imbalance_2" / "made.json").read_text(encoding="utf-8")
    assert '"§"' in made and "error" not in capsys.readouterr().out
