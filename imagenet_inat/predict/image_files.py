"""The images to classify: folders, files, or a list of paths with or without labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagenet_inat.decoding import UNREADABLE, open_rgb
from imagenet_inat.images import CHECKED_IMAGES, adapt_paths, image_exists
from imagenet_inat.lists.format import read_split
from imagenet_inat.splits.image_search import ImageSearch
from utils.errors import InputError, first_line

LABELLED = re.compile(r"\S\s+-?\d+$")  # a line of a split list: a path, blanks, a label


class ImageList(NamedTuple):
    """The images to classify.

    Attributes:
        root: folder that the paths start from.
        paths: paths as they are written to the output.
        files: the same paths on disk, which differ for ImageNet's validation images (see `adapt_paths`).
        labels: (n,) int64, or None.
        skipped: how many files of the folders are not used, and why; or "".
    """

    root: Path
    paths: list[str]
    files: list[str]
    labels: np.ndarray | None = None
    skipped: str = ""


def find_images(given: list[str]) -> ImageList:
    """Return these images, and all images in these folders and their subfolders, in alphabetical order.

    Raises:
        InputError: a path does not exist, or a folder contains no image.
    """
    paths, skipped = [], []
    for name in given:
        if not Path(name).exists():
            raise InputError(f"{name}: no such file or folder")
        if not Path(name).is_dir():
            paths.append(name)
            continue
        search = ImageSearch(Path(name))
        images = search.images_below(".")
        if not images:
            raise InputError(f"{name}: no images in this folder; skipped {search.summary()}")
        paths += [str(Path(name) / image) for image in images]
        skipped += [f"{name}: skipped {search.summary()}"] if search.skipped else []
    return ImageList(Path(), paths, paths, skipped="; ".join(skipped))


def read_list(path: Path, root: Path, num_classes: int, flat_folder: str) -> ImageList:
    """Read a list of one path per line, or a split list of paths and labels.

    Args:
        root: folder that the paths start from.
        num_classes: number of classes, which limits the labels.
        flat_folder: see DatasetSpec.

    Raises:
        InputError: the list is not a text file, is empty, or is not a valid split list; or none of its first images
            exists.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a UTF-8 text file, expected one path per line") from None
    if not lines:
        raise InputError(f"{path}: empty, expected one path per line")
    paths = files = lines
    labels = None
    if all(map(LABELLED.search, lines)) and not (root / lines[0]).is_file():
        encoded, labels = read_split(path, num_classes)
        paths = [line.decode() for line in encoded.tolist()]
        files = [line.decode() for line in adapt_paths(root, encoded, flat_folder)[0].tolist()]
    if not any(image_exists(root, file) for file in files[:CHECKED_IMAGES]):
        raise InputError(
            f"{root / files[0]}: no such image; none of the first images of {path} exists. Set --data-root to the "
            "folder that its paths start from"
        )
    return ImageList(root, paths, files, labels)


class ImageFiles(Dataset):
    """The images of an ImageList, for loader processes.

    An item is (pixels, error): (3, S, S) uint8 and "", or zeros and why the file cannot be read.

    Args:
        as_shown: see `open_rgb`; as in the training of the classifier.
    """

    def __init__(
        self, images: ImageList, transform: Callable[[Image.Image], Tensor], image_size: int, as_shown: bool = False
    ):
        self.images, self.transform, self.image_size, self.as_shown = images, transform, image_size, as_shown

    def __len__(self) -> int:
        return len(self.images.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return self.transform(open_rgb(self.images.root, self.images.files[index], self.as_shown)), ""
        except (InputError, *UNREADABLE) as error:
            problem = getattr(error, "strerror", None) or first_line(error)
        return torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8), f"not a readable image: {problem}"
