"""Characters in many fonts: grey images of 28 × 28 pixels in 100 classes, rendered from the fonts of this machine.

A class is a character, and an image is the character in one font. The fonts of validation and test come from other
families than those of training. Class c has LARGEST · ρ^(−c/99) training images, each of another font. The characters
and the split of the fonts do not depend on the seed of a run, but the images depend on which fonts are installed.
images/fonts.txt lists the fonts that were used.
"""

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagenet_inat.lists.format import format_split, generated_folders
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.profiles import class_sizes
from utils.distributed import log
from utils.errors import InputError
from utils.files import write_folder

SET_NAME, NUM_CLASSES, SIDE = "glyphs_LT", 100, 28
LARGEST = 300  # training images of the largest class, and number of training fonts
FONTS = {"test": 100, "val": 50, "train": LARGEST}  # in the order in which families are taken
MOST_PER_FAMILY = 12
FONTS_SEED = 0  # random seed of the order of characters, families and fonts
MARGIN = 2  # pixels between the highest or widest character and the border, before hinting
FAMILY_LETTERS = (
    4  # fonts whose family names start with the same letters, such as Noto Sans and Noto Serif, are a family
)
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿß&@#$%?!§"
ADVICE = "install more fonts (docs/data.md lists packages of Debian)"


def prepare(data_root: Path, imbalance: float, largest: None = None, split_seed: int = 0) -> None:
    """Write images and lists below data_root, unless they exist.

    Args:
        largest: unused, because the largest class is always LARGEST.
        split_seed: random seed of the selection of the training fonts of each class.

    Raises:
        InputError: too few fonts are installed.
    """
    root, lists = generated_folders(SET_NAME, data_root, imbalance, split_seed=split_seed)
    if not (root / "images").is_dir():
        log(f"data: rendering {NUM_CLASSES} characters in {sum(FONTS.values())} fonts to {root / 'images'}")
    write_folder(root / "images", _write_images)
    write_folder(lists, lambda folder: _write_lists(folder, imbalance, split_seed))


def characters() -> list[str]:
    """Return the character of each class, in random order, so that class sizes do not follow the alphabet."""
    return [CHARACTERS[i] for i in np.random.RandomState(FONTS_SEED).permutation(NUM_CLASSES)]


def choose_fonts(families: dict[str, list[Path]]) -> dict[str, dict[Path, np.ndarray]]:
    """Choose the fonts of each split, and render them.

    Args:
        families: family -> font files.

    Returns:
        split -> font file -> images of all characters, (C, SIDE, SIDE) uint8. The splits have no family in common.

    Raises:
        InputError: there are too few fonts.
    """
    chosen: dict[str, dict[Path, np.ndarray]] = {split: {} for split in FONTS}
    names, seen = sorted(families), set()  # seen: (class, pixels) of all images so far
    for name in (names[i] for i in np.random.RandomState(FONTS_SEED).permutation(len(names))):
        split = next((split for split, count in FONTS.items() if len(chosen[split]) < count), None)
        if split is None:
            break
        most = min(MOST_PER_FAMILY, FONTS[split] - len(chosen[split]))
        chosen[split] |= _render_family(families[name], seen, most)
    if (found := sum(map(len, chosen.values()))) < sum(FONTS.values()):
        raise InputError(
            f"glyphs: found {found} fonts with all {NUM_CLASSES} characters, at most {MOST_PER_FAMILY} of each of "
            f"{len(families)} families, expected {sum(FONTS.values())}; {ADVICE}"
        )
    return chosen


def find_families() -> dict[str, list[Path]]:
    """Return the installed fonts that have all characters: start of the family's name -> files."""
    from matplotlib import font_manager, ft2font  # here, because they are needed only once

    families: dict[str, list[Path]] = {}
    for file in sorted(font_manager.findSystemFonts()):
        try:
            font = ft2font.FT2Font(file)
            if {*map(ord, CHARACTERS)} <= font.get_charmap().keys():
                name = re.sub(r"[^a-z]", "", font.family_name.lower())[:FAMILY_LETTERS]
                families.setdefault(name, []).append(Path(file))
        except (RuntimeError, OSError):  # not a scalable font
            continue
    return families


def render(file: Path) -> np.ndarray | None:
    """Render all characters in a font, at the same size and on the same baseline.

    Returns:
        (C, SIDE, SIDE) uint8, white on black, or None if two characters look the same or the font cannot be used.
    """
    try:
        large = ImageFont.truetype(file, 100)
        boxes = np.array([large.getbbox(character, anchor="ms") for character in CHARACTERS])
        left, top, right, bottom = *boxes[:, :2].min(0), *boxes[:, 2:].max(0)
        scale = (SIDE - 2 * MARGIN) / max(bottom - top, 2 * max(-left, right), 1)  # of a size of 100 pixels
        font, baseline = ImageFont.truetype(file, max(1, int(100 * scale))), round((SIDE - (top + bottom) * scale) / 2)
        images = []
        for character in characters():
            image = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(image).text((SIDE / 2, baseline), character, fill=255, font=font, anchor="ms")
            images.append(np.asarray(image))
    except (OSError, ValueError):
        return None
    return np.stack(images) if len({image.tobytes() for image in images}) == NUM_CLASSES else None


def _render_family(files: list[Path], seen: set[tuple[int, bytes]], most: int) -> dict[Path, np.ndarray]:
    """Render up to `most` fonts of a family. Copies of a font, under the same or another name, are not used.

    seen: (class, pixels) of all images so far; those of this family are added. Copies share most of their images.
    """
    rendered: dict[Path, np.ndarray] = {}
    for file in (files[i] for i in np.random.RandomState(FONTS_SEED).permutation(len(files))):
        images = render(file)
        if images is None:
            continue
        own = {(label, image.tobytes()) for label, image in enumerate(images)}
        if len(own & seen) > NUM_CLASSES / 2:
            continue
        seen |= own
        rendered[file] = images
        if len(rendered) == most:
            break
    return rendered


def _write_images(folder: Path) -> None:
    chosen = choose_fonts(find_families())
    for split, fonts in chosen.items():
        images = np.concatenate([*fonts.values()])  # (fonts · C, SIDE, SIDE)
        header = np.array([0x00000803, *images.shape], dtype=">u4")
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header.tobytes() + images.tobytes())
    lines = [f"{split}\t{file}\n" for split, fonts in chosen.items() for file in fonts]
    (folder / "fonts.txt").write_text("".join(lines), "utf-8", "surrogateescape")


def _write_lists(folder: Path, imbalance: float, split_seed: int) -> None:
    rng, texts = np.random.RandomState(split_seed), {}
    for split, count in FONTS.items():
        sizes = class_sizes("exp", NUM_CLASSES, imbalance, LARGEST) if split == "train" else [count] * NUM_CLASSES
        paths, labels = [], []
        for label, size in enumerate(sizes):
            fonts = np.sort(rng.permutation(count)[:size])
            paths += [f"images/{split}-images-idx3-ubyte/{font * NUM_CLASSES + label:05d}" for font in fonts]
            labels += [label] * size
        texts[f"{SET_NAME}_{split}.txt"] = format_split(paths, labels)
    made = {"source": "images/fonts.txt", "profile": "exp", "imbalance": imbalance, "split_seed": split_seed}
    made |= {"classes": characters()}
    write_lists(folder, texts, made)
