"""Long-tailed splits of any images: from a folder of class folders, from a list, from iNaturalist's annotations."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from imagenet_inat.lists.format import count_classes, read_split, split_text
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.profiles import EPSILON, class_sizes, cut, shares
from utils.errors import InputError
from utils.untrusted import parse_json


class Plan(NamedTuple):
    """How to cut a split: val and test in images a class; largest: of the largest class, None: all that fits."""

    profile: str
    imbalance: float
    seed: int
    val: int
    test: int
    largest: int | None = None


def find_images(source: Path) -> tuple[list[str], list[list[str]]]:
    """The classes of a folder of class folders, and the images of each, as paths below `source`.

    Raises:
        InputError: no such folder, fewer than two classes, or a class without an image.
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
            raise InputError(f"{source / name}: no image in it ({', '.join(IMG_EXTENSIONS)}); every folder is a class")
    if len(classes) < 2:
        raise InputError(f"{source}: {len(classes)} class folders, expected one for each of two classes or more")
    return classes, images


def read_images(source: Path) -> tuple[list[str], list[list[str]]]:
    """The classes of a list, named by their labels, and the images of each.

    Raises:
        InputError: see `read_split` and `count_classes`; fewer than two classes.
    """
    paths, labels = read_split(source, None)
    num_classes = count_classes(source, labels)
    if num_classes < 2:
        raise InputError(f"{source}: one class, expected two or more")
    decoded = np.array([path.decode() for path in paths.tolist()], dtype=object)
    return [str(label) for label in range(num_classes)], [decoded[labels == c].tolist() for c in range(num_classes)]


def train_sizes(available: list[int], plan: Plan, names: list[str]) -> list[int]:
    """Training images of each class; the class with most images at hand becomes the head, ties by label.

    Raises:
        InputError: there are not enough images for what is asked.
    """
    left = np.array(available) - plan.val - plan.test
    if left.min() < 1:
        name, count = names[int(left.argmin())], available[int(left.argmin())]
        raise InputError(f"class {name}: {count} images, --val {plan.val} and --test {plan.test} leave none to train")
    order = np.argsort(-left, kind="stable")
    wanted = np.array(shares(plan.profile, len(left), plan.imbalance))
    possible = int((left[order] / wanted + EPSILON).min())
    largest = possible if plan.largest is None else plan.largest
    if largest > possible:
        raise InputError(f"--largest {largest}: the images at hand allow {possible} with this profile and imbalance")
    sizes = class_sizes(plan.profile, len(left), plan.imbalance, largest)
    if sizes[-1] < 1:
        raise InputError(
            f"--imbalance {plan.imbalance:g}: the largest class has {largest} images, so the smallest none; "
            f"expected at most {largest}"
        )
    by_label = np.empty(len(left), dtype=int)
    by_label[order] = sizes
    return by_label.tolist()


def make_split(source: Path, output: Path, plan: Plan) -> list[int]:
    """Write custom_{train,val,test}.txt and made.json of a folder or a list of images; returns `train_sizes`."""
    classes, images = read_images(source) if source.is_file() else find_images(source)
    sizes = train_sizes([len(paths) for paths in images], plan, classes)
    parts = cut(images, sizes, plan.val, plan.test, plan.seed)
    texts = {f"custom_{split}.txt": split_text(*part) for split, part in parts.items()}
    write_lists(output, texts, {"source": str(source), **plan._asdict(), "classes": classes, "train_counts": sizes})
    return sizes


def make_inat(annotations: dict[str, Path], output: Path) -> None:
    """Write iNaturalist18_{train,val}.txt, images in their order, from the competition's files of annotations.

    Raises:
        InputError: a file that is none of these.
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
            raise ValueError("it lists no images")
        for name, label in zip(images, labels, strict=True):
            if not isinstance(name, str) or type(label) is not int or label < 0:
                raise ValueError(f"found image {name!r} of category {label!r}, a text and a number from 0 on are meant")
    except (ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise InputError(
            f"{path}: not the competition's annotations ({kind}: {error}); expected train2018.json or val2018.json, "
            "with images (id, file_name) and annotations (image_id, category_id)"
        ) from None
    return split_text(images, labels)
