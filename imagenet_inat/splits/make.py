"""Create natural or long-tailed splits from a folder of images or a list, and iNaturalist's from its annotations."""

from pathlib import Path

import numpy as np

from imagenet_inat.lists.format import count_classes, format_split, read_split
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.plan import MIN_TO_SPLIT, SplitPlan, plan_sizes
from imagenet_inat.lists.profiles import sample_splits
from imagenet_inat.splits.findings import format_first_cases
from imagenet_inat.splits.image_folders import FoundImages, find_images
from utils.distributed import log
from utils.errors import InputError
from utils.safe_load import parse_json


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


def make_split(source: Path, output: Path, plan: SplitPlan) -> dict[str, np.ndarray]:
    """Write custom_{train,val,test}.txt and made.json from a folder or a list of images.

    The lists of split folders contain all their images. Other splits are split off from the training images.

    Returns:
        The number of images of each class in each split, (C,) each.

    Raises:
        InputError: a list would be empty; see also `find_images`, `SplitPlan.with_defaults` and `plan_sizes`.
    """
    found = read_images(source) if source.is_file() else find_images(source)
    plan = plan.with_defaults(found.images.keys() - {"train"})
    classes, images = omit_small_classes(found, plan.min_images, source)
    sizes = plan_sizes([len(paths) for paths in images["train"]], plan, classes)
    splits = sample_splits(images["train"], *(counts.tolist() for counts in sizes), plan.seed)
    for split in images.keys() - {"train"}:
        splits[split] = (
            [path for paths in images[split] for path in paths],
            [label for label, paths in enumerate(images[split]) for _ in paths],
        )
    counts = {split: np.bincount(labels, minlength=len(classes)) for split, (_, labels) in splits.items()}
    report_classes_without_images(counts, classes)
    texts = {f"custom_{split}.txt": format_split(*content) for split, content in splits.items()}
    made = {"classes": classes, "train_counts": counts["train"].tolist()}
    write_lists(output, texts, {"source": str(source), **plan._asdict(), **made})
    return counts


def omit_small_classes(found: FoundImages, min_images: int, source: Path) -> FoundImages:
    """Return the classes with at least `min_images` training images, and report the others.

    Raises:
        InputError: fewer than two classes remain, or a class has no training image.
    """
    counts = [len(paths) for paths in found.images["train"]]
    kept = [label for label, count in enumerate(counts) if count >= min_images]
    if len(kept) < len(counts):
        omitted = [f"{name} ({count})" for name, count in zip(found.classes, counts, strict=True) if count < min_images]
        log(
            f"--min-images {min_images}: omitted {len(omitted)} of {len(counts)} classes: {format_first_cases(omitted)}"
        )
    if len(kept) < 2:
        raise InputError(f"{source}: {len(kept)} class folders with images (--min-images), expected two or more")
    if empty := [found.classes[label] for label in kept if not counts[label]]:
        raise InputError(
            f"{source}: no training image that Pillow can open in {format_first_cases(empty)}, expected one or more; "
            "add images, or omit such classes with --min-images 1"
        )
    images = {split: [paths[label] for label in kept] for split, paths in found.images.items()}
    return FoundImages([found.classes[label] for label in kept], images)


def report_classes_without_images(counts: dict[str, np.ndarray], classes: list[str]) -> None:
    """Report the classes that have no validation or test image. counts: see `make_split`.

    Raises:
        InputError: no class has one.
    """
    for split in ("val", "test"):
        missing = [f"{classes[c]} ({counts['train'][c]})" for c in np.flatnonzero(counts[split] == 0)]
        if len(missing) == len(classes):
            raise InputError(f"no image for {split}: expected a class with {MIN_TO_SPLIT} or more images")
        if missing:
            log(
                f"note: {len(missing)} of {len(classes)} classes have no {split} image (in parentheses: training "
                f"images): {format_first_cases(missing)}; all accuracies, also the means over classes, leave "
                "these classes out"
            )


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
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"image {name!r} is outside the data root, expected a relative path without ..")
    except (ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise InputError(
            f"{path}: not iNaturalist 2018 annotations ({kind}: {error}); expected train2018.json or val2018.json, "
            "with images (id, file_name) and annotations (image_id, category_id)"
        ) from None
    return format_split(images, labels)
