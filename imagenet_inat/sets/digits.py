"""The digits data set: a long-tailed split of scikit-learn's handwritten digits.

The scikit-learn package contains 1,797 real images of 8×8 pixels. They are written once,
as PNG files with split lists, and then read like any other data set. --split-seed selects
40 test images and 14 validation images per class, and 120·imbalance^(-c/9) of the other
120 images of class c for training, so that digit 0 is the most frequent and 9 the rarest.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_inat.lists.format import format_split, generated_folders
from imagenet_inat.lists.profiles import class_sizes, sample_splits
from utils.distributed import log
from utils.files import write_folder

NUM_CLASSES = 10
TEST_PER_CLASS, VAL_PER_CLASS, TRAIN_LARGEST = 40, 14, 120


def load_digits():
    """Load scikit-learn's digits. The import is here because it takes a second and is needed only once."""
    from sklearn import datasets

    return datasets.load_digits()


def train_counts(imbalance: float) -> list[int]:
    """Return the training images of each class. imbalance: largest / smallest class, at most 120."""
    return class_sizes("exp", NUM_CLASSES, imbalance, TRAIN_LARGEST)


def prepare(data_root: Path, imbalance: float, largest: None = None, split_seed: int = 0) -> tuple[Path, Path]:
    """Write images and lists below data_root unless they exist. Return their folders, as `generated_folders`.

    Args:
        largest: unused, because the largest class is always TRAIN_LARGEST.
        split_seed: random seed of the selection of the images of each list.
    """
    root, splits = generated_folders("digits_LT", data_root, imbalance, split_seed=split_seed)
    if not splits.is_dir():
        log(f"data: writing the lists {splits}, and the images unless they exist")
    write_folder(root / "images", _write_images)
    write_folder(splits, lambda folder: _write_lists(folder, imbalance, split_seed))
    return root, splits


def _image_name(label: int, number: int) -> str:
    """Return an image's path. number: its index in scikit-learn's data."""
    return f"images/{label}/{number:04d}.png"


def _write_images(folder: Path) -> None:
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / _image_name(label, number).removeprefix("images/")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)


def _write_lists(folder: Path, imbalance: float, split_seed: int) -> None:
    labels = load_digits().target
    images = [[_image_name(c, number) for number in np.flatnonzero(labels == c)] for c in range(NUM_CLASSES)]
    splits = sample_splits(images, train_counts(imbalance), VAL_PER_CLASS, TEST_PER_CLASS, split_seed)
    for split, content in splits.items():
        (folder / f"digits_LT_{split}.txt").write_text(format_split(*content), encoding="utf-8")
