"""Create long-tailed splits from a folder of class folders or a list, and iNaturalist's lists from its annotations."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from imagenet_inat.lists.format import count_classes, format_split, read_split
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.profiles import EPSILON, class_fractions, class_sizes, sample_splits
from utils.errors import InputError
from utils.safe_load import parse_json


class SplitPlan(NamedTuple):
    """Settings of a split.

    Attributes:
        profile: a key of PROFILES.
        imbalance: largest / smallest class.
        seed: random seed of the selection of images.
        val, test: number of validation and test images per class.
        largest: number of training images of the largest class; None: as many as possible.
    """

    profile: str
    imbalance: float
    seed: int
    val: int
    test: int
    largest: int | None = None


def find_images(source: Path) -> tuple[list[str], list[list[str]]]:
    """Return the classes of a folder of class folders, and the images of each as paths below `source`.

    Raises:
        InputError: the folder cannot be read, has fewer than two classes, or a class has no image.
    """
    try:
        classes = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); expected a folder of class folders") from None
    classes = [name for name in classes if not name.startswith(".")]
    images = []
    for name in tqdm(classes, desc="images", unit="class", leave=False, disable=None):
        files = (path for path in sorted((source / name).rglob("*")) if path.suffix.lower() in IMG_EXTENSIONS)
        images.append([path.relative_to(source).as_posix() for path in files])
        if not images[-1]:
            raise InputError(f"{source / name}: no images ({', '.join(IMG_EXTENSIONS)}), expected one or more")
    if len(classes) < 2:
        raise InputError(f"{source}: {len(classes)} class folders, expected two or more")
    return classes, images


def read_images(source: Path) -> tuple[list[str], list[list[str]]]:
    """Return the classes of a list, named by their labels, and the images of each.

    Raises:
        InputError: see `read_split` and `count_classes`; or the list has fewer than two classes.
    """
    paths, labels = read_split(source, None)
    num_classes = count_classes(source, labels)
    if num_classes < 2:
        raise InputError(f"{source}: one class, expected two or more")
    decoded = np.array([path.decode() for path in paths.tolist()], dtype=object)
    return [str(label) for label in range(num_classes)], [decoded[labels == c].tolist() for c in range(num_classes)]


def train_sizes(available: list[int], plan: SplitPlan, names: list[str]) -> list[int]:
    """Return the training images of each class. Classes are ranked by available images, ties by label.

    Raises:
        InputError: there are not enough images for the plan.
    """
    remaining = np.array(available) - plan.val - plan.test
    if remaining.min() < 1:
        name, count = names[int(remaining.argmin())], available[int(remaining.argmin())]
        raise InputError(f"class {name}: {count} images, none left after --val {plan.val} and --test {plan.test}")
    order = np.argsort(-remaining, kind="stable")
    fractions = np.array(class_fractions(plan.profile, len(remaining), plan.imbalance))
    possible = int((remaining[order] / fractions + EPSILON).min())
    largest = possible if plan.largest is None else plan.largest
    if largest > possible:
        raise InputError(f"--largest {largest}: expected at most {possible} with these images, profile and imbalance")
    sizes = class_sizes(plan.profile, len(remaining), plan.imbalance, largest)
    if sizes[-1] < 1:
        raise InputError(
            f"--imbalance {plan.imbalance:g}: the smallest class would be empty; expected at most {largest}, the "
            f"images of the largest class"
        )
    by_label = np.empty(len(remaining), dtype=int)
    by_label[order] = sizes
    return by_label.tolist()


def make_split(source: Path, output: Path, plan: SplitPlan) -> list[int]:
    """Write custom_{train,val,test}.txt and made.json from a folder or a list of images. Return `train_sizes`."""
    classes, images = read_images(source) if source.is_file() else find_images(source)
    sizes = train_sizes([len(paths) for paths in images], plan, classes)
    splits = sample_splits(images, sizes, plan.val, plan.test, plan.seed)
    texts = {f"custom_{split}.txt": format_split(*content) for split, content in splits.items()}
    write_lists(output, texts, {"source": str(source), **plan._asdict(), "classes": classes, "train_counts": sizes})
    return sizes


def make_inat(annotations: dict[str, Path], output: Path) -> None:
    """Write iNaturalist18_{train,val}.txt from the competition's annotation files, in their order.

    Raises:
        InputError: a file is not an annotation file of the competition.
    """
    texts = {f"iNaturalist18_{split}.txt": _inat_text(path) for split, path in annotations.items()}
    files = {split: str(path) for split, path in annotations.items()}
    write_lists(output, texts, {"source": "annotations of iNaturalist 2018", "json": files})


def _inat_text(path: Path) -> str:
    try:
        record = parse_json(path.read_bytes())
        category = {entry["image_id"]: entry["category_id"] for entry in record["annotations"]}
        images = [image["file_name"] for image in record["images"]]
        labels = [category[image["id"]] for image in record["images"]]
        if not images:
            raise ValueError("no images")
        for name, label in zip(images, labels, strict=True):
            if not isinstance(name, str) or type(label) is not int or label < 0:
                raise ValueError(f"image {name!r}, category {label!r}, expected text and an integer ≥ 0")
    except (ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise InputError(
            f"{path}: not iNaturalist 2018 annotations ({kind}: {error}); expected train2018.json or val2018.json, "
            "with images (id, file_name) and annotations (image_id, category_id)"
        ) from None
    return format_split(images, labels)
