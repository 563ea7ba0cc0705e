"""Data sets: one registry row each, and the one class that reads a split file.

A new data set is a new row in REGISTRY and its lists in the folder `splits_folder`
names; both scripts then take it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from utils.errors import InputError
from utils.randomness import Stream, counted_seed

LISTS_ROOT = Path(__file__).parent / "data"
IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many > 100, few < 20


@dataclass(frozen=True)
class DatasetSpec:
    """What the project knows of one data set.

    set_name: split lists are called <set_name>_{train,val,test}.txt.
    test_split: "val" where the set has no test list.
    view: which random view (moco/loader.py); jitter: with colour or contrast jitter.
    repeat: how often an epoch passes over the training list (tiny sets).
    source: where images and lists come from, shown when they are missing.
    """

    name: str
    set_name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    image_size: int = 224
    arch: str = "resnet50"
    view: str = "photo"
    jitter: bool = True
    test_split: str = "test"
    repeat: int = 1


REGISTRY = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="imagenet",
            set_name="ImageNet_LT",
            num_classes=1000,
            **IMAGENET_STATISTICS,
            source="ILSVRC 2012 with train/<wnid>/*.JPEG and val/, lists of classifier-balancing",
        ),
        DatasetSpec(
            name="inat",
            set_name="iNaturalist18",
            num_classes=8142,
            mean=(0.466, 0.471, 0.380),
            std=(0.195, 0.194, 0.192),
            source="iNaturalist 2018 with train_val2018/, lists of classifier-balancing",
            jitter=False,
            test_split="val",
        ),
        DatasetSpec(
            name="digits",
            set_name="digits_LT",
            num_classes=10,
            mean=(0.305, 0.305, 0.305),
            std=(0.376, 0.376, 0.376),
            source="scikit-learn's handwritten digits, written at first use",
            image_size=16,
            arch="resnet20",
            view="digit",
            repeat=8,
        ),
    )
}


def default_splits_folder(spec: DatasetSpec) -> Path:
    """Where the lists of a data set are looked for without --splits."""
    return LISTS_ROOT / spec.set_name


def shots(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the classes, (C,) bool each: many > 100, medium 20-100, few < 20 training images."""
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def read_split(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a split list, `<path relative to the data root> <label>` a line.

    Returns:
        paths: (n,) array of UTF-8 bytes (one block of memory that loader workers
        share, not n Python strings); labels: (n,) int64.

    Raises:
        InputError: no file, not text, empty, a line without path and whole-number
            label, or a label outside 0 ... num_classes - 1; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        try:
            image, label = line.rsplit(maxsplit=1)
            label = int(label)
        except ValueError:
            raise InputError(f'{path}:{number}: found "{line[:80]}", expected "<path> <label>"') from None
        if not 0 <= label < num_classes:
            raise InputError(f"{path}:{number}: label {label}, expected 0 to {num_classes - 1}")
        paths.append(image.encode())
        labels.append(label)
    if not paths:
        raise InputError(f"{path}: empty, expected one '<path> <label>' a line")
    return np.array(paths), np.array(labels, dtype=np.int64)


class LongTailDataset(Dataset):
    """The images of one split list.

    Indexed with a number, or by the samplers with (index, draw): `draw` is the number
    of the draw in the run, and the random view is a function of the seed and of it.

    Args:
        root: the data root the list's paths start from. list_file: the split list.
        num_classes: C. transform: of the decoded RGB image. seed: the run's.

    Raises:
        InputError: see `read_split`; a root without the list's first image; and at
            access, an image that is missing or cannot be decoded (file and line named).
    """

    def __init__(self, root: Path, list_file: Path, num_classes: int, transform: Callable, seed: int = 0):
        self.root, self.list_file, self.num_classes = Path(root), Path(list_file), num_classes
        self.transform, self.seed = transform, seed
        self.paths, self.labels = read_split(self.list_file, num_classes)
        first = self.root / self.paths[0].decode()
        if not first.is_file():
            raise InputError(
                f"{first}: no such image, the first of {self.list_file}; --data-root must be the "
                "folder that the list's paths start from"
            )

    @property
    def class_counts(self) -> np.ndarray:
        """(C,) int64, images a class."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]):
        index, draw = item if isinstance(item, tuple) else (item, None)
        image = self._read(index)
        if draw is not None:
            # torchvision's transforms draw from torch's global generator; only the CPU's is set,
            # and before each image, so nothing is left of what was drawn earlier.
            torch.default_generator.manual_seed(counted_seed(self.seed, Stream.AUGMENT, draw))
        return self.transform(image), int(self.labels[index])

    def _read(self, index: int) -> Image.Image:
        path = self.root / self.paths[index].decode()
        try:
            with Image.open(path) as image:
                image.load()
                return image if image.mode == "RGB" else image.convert("RGB")  # else convert would copy it
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            line = index + 1
            raise InputError(f"{path}: not a readable image, {self.list_file}:{line} ({error})") from None
