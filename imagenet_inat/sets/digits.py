"""The embedded data: a long-tailed split of scikit-learn's handwritten digits.

1,797 real 8×8 images come inside the scikit-learn package. They are written once as
PNG files beside split lists, and from then on they are read like any other data set.
The split is fixed: balanced test of 40 a class, validation of 14 a class, and of the
120 left in each class 120·imbalance^(-c/9) for training, digit 0 most, digit 9 least.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_inat.lists.format import made_folders, split_text
from imagenet_inat.lists.profiles import class_sizes, cut
from utils.files import write_folder

NUM_CLASSES = 10
TEST_PER_CLASS, VAL_PER_CLASS, TRAIN_LARGEST = 40, 14, 120
SPLIT_SEED = 0


def load_digits():
    """scikit-learn's digits, needed once: its import would take a second of every start."""
    from sklearn import datasets

    return datasets.load_digits()


def train_counts(imbalance: float) -> list[int]:
    """Training images of each class for a ratio of largest to smallest class (at most 120, so that each has one)."""
    return class_sizes("exp", NUM_CLASSES, imbalance, TRAIN_LARGEST)


def prepare(data_root: Path, imbalance: float, largest: None = None) -> tuple[Path, Path]:
    """Write images and lists under data_root unless they are there; returns their places, as `made_folders`.

    largest: it is TRAIN_LARGEST.
    """
    root, splits = made_folders("digits_LT", data_root, imbalance)
    write_folder(root / "images", _write_images)
    write_folder(splits, lambda folder: _write_lists(folder, imbalance))
    return root, splits


def _image_name(label: int, number: int) -> str:
    """number: in the package."""
    return f"images/{label}/{number:04d}.png"


def _write_images(folder: Path) -> None:
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / _image_name(label, number).removeprefix("images/")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)


def _write_lists(folder: Path, imbalance: float) -> None:
    labels = load_digits().target
    images = [[_image_name(c, number) for number in np.flatnonzero(labels == c)] for c in range(NUM_CLASSES)]
    parts = cut(images, train_counts(imbalance), VAL_PER_CLASS, TEST_PER_CLASS, SPLIT_SEED)
    for split, part in parts.items():
        (folder / f"digits_LT_{split}.txt").write_text(split_text(*part), encoding="utf-8")
