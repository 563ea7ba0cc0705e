"""Create long-tailed splits from a folder of images or a list, and iNaturalist's lists from its annotations."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_inat.lists.format import count_classes, format_split, read_split
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.profiles import EPSILON, class_fractions, class_sizes, sample_splits
from imagenet_inat.splits.image_folders import FoundImages, find_images
from utils.errors import InputError
from utils.safe_load import parse_json

SPLIT_OFF = {"val": 10, "test": 20}  # images of each class that are split off by default


class SplitPlan(NamedTuple):
    """Settings of a split.

    Attributes:
        profile: a key of PROFILES.
        imbalance: largest / smallest class.
        seed: random seed of the selection of images.
        val, test: number of validation and test images per class that are split off from the training images; None:
            10 and 20, or 0 if the source has a folder of this split.
        largest: number of training images of the largest class; None: as many as possible.
    """

    profile: str
    imbalance: float
    seed: int
    val: int | None
    test: int | None
    largest: int | None = None


def read_images(source: Path) -> FoundImages:
    """Return the classes of a list, named by their labels, and the images of each.

    Raises:
        InputError: see `read_split` and `count_classes`; or the list has fewer than two classes.
    """
    paths, labels = read_split(source, None)
    num_classes = count_classes(source, labels)
    if num_classes < 2:
        raise InputError(f"{source}: one class, expected two or more")
    decoded = np.array([path.decode() for path in paths.tolist()], dtype=object)
    names = [str(label) for label in range(num_classes)]
    return FoundImages(names, {"train": [decoded[labels == c].tolist() for c in range(num_classes)]})


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
    """Write custom_{train,val,test}.txt and made.json from a folder or a list of images. Return `train_sizes`.

    The lists of split folders contain all their images. Other splits are split off from the training images.

    Raises:
        InputError: a number is given for a split that has a folder; see also `find_images`, `train_sizes`.
    """
    classes, images = read_images(source) if source.is_file() else find_images(source)
    for split, default in SPLIT_OFF.items():
        given = getattr(plan, split)
        if split in images and given is not None:
            raise InputError(f"--{split} {given}: {source} has a folder of this split; omit --{split}")
        if given is None:
            plan = plan._replace(**{split: 0 if split in images else default})
    sizes = train_sizes([len(paths) for paths in images["train"]], plan, classes)
    splits = sample_splits(images["train"], sizes, plan.val, plan.test, plan.seed)
    for split in images.keys() - {"train"}:
        splits[split] = (
            [path for paths in images[split] for path in paths],
            [label for label, paths in enumerate(images[split]) for _ in paths],
        )
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
