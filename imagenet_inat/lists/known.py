"""Known split lists: published lists are recognised by name, generated lists by the made.json beside them."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.distributed import log
from utils.errors import InputError
from utils.files import write_text
from utils.safe_load import are_texts, read_json

COMMIT = "f162adef63fdf592d0b8a0f6e52bc481fc08785f"
SOURCE = f"https://raw.githubusercontent.com/facebookresearch/classifier-balancing/{COMMIT}/data"  # + /<Set>/<file>
KCL_COMMIT = "7a05423797035ef8a1e57d5ac1442ca0ffc545b7"
KCL_SOURCE = f"https://raw.githubusercontent.com/bingykang/BalFeat/{KCL_COMMIT}/data"  # the lists in COUNTS
MADE = "made.json"  # how the lists beside it were generated, and their hashes


class KnownFile(NamedTuple):
    """Size in bytes, number of lines and SHA-256 (hexadecimal) of a list."""

    bytes: int
    lines: int
    sha256: str


PUBLISHED = {
    "ImageNet_LT_train.txt": KnownFile(
        4_658_674, 115_846, "efdbdad4f050237c310b2f354cf95a8b1d7c8d57a63c4ea4bb6bf2bcb012f37f"
    ),
    "ImageNet_LT_val.txt": KnownFile(
        804_172, 20_000, "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e"
    ),
    "ImageNet_LT_test.txt": KnownFile(
        2_344_500, 50_000, "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5"
    ),
    "iNaturalist18_train.txt": KnownFile(
        29_804_998, 437_513, "158fa2dca040e6e95b06c68c7cdff40fe696f202793b2aa0e8b854321ffe1adf"
    ),
    "iNaturalist18_val.txt": KnownFile(
        1_677_390, 24_426, "efaeff65f80641b60864470e6f255aa69453406ef5717eec8c6681748f3a61f3"
    ),
    "Places_LT_train.txt": KnownFile(
        2_092_674, 62_500, "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7"
    ),
}


class KnownCounts(NamedTuple):
    """Number of images of a training list, and of its largest and its smallest class."""

    images: int
    largest: int
    smallest: int


# Lists whose SHA-256 is unknown. The counts are those in the README of the KCL authors' code.
COUNTS = {
    "imagenet_100k_train.txt": KnownCounts(115_000, 115, 115),
    "imagenet_lt2_train.txt": KnownCounts(115_885, 204, 67),
    "imagenet_lt4_train.txt": KnownCounts(115_801, 343, 37),
    "imagenet_lt6_train.txt": KnownCounts(115_836, 553, 20),
    "imagenet_lt8_train.txt": KnownCounts(115_852, 857, 10),
}


def published_url(name: str, set_name: str) -> str:
    """Return the folder address of a published list. set_name: the data set's, as in DatasetSpec."""
    return KCL_SOURCE if name in COUNTS else f"{SOURCE}/{set_name}"


def counts_problem(name: str, counts: np.ndarray) -> str | None:
    """Return how the class counts of a list, (C,), differ from COUNTS; None if they agree or none are known."""
    found, known = KnownCounts(int(counts.sum()), int(counts.max()), int(counts.min())), COUNTS.get(name)
    if known in (None, found):
        return None
    return f"{_format_counts(found)}, expected {_format_counts(known)}"


def _format_counts(counts: KnownCounts) -> str:
    return f"{counts.images:,} images with {counts.largest} … {counts.smallest} per class"


def fingerprint(data: bytes) -> KnownFile:
    """Return the size, number of lines and SHA-256 of a list's bytes."""
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    return KnownFile(len(data), lines, hashlib.sha256(data).hexdigest())


def known_files(path: Path) -> list[KnownFile]:
    """Return the known contents of the list at `path`: the published one and the one in made.json, if they exist.

    Raises:
        InputError: made.json cannot be read.
    """
    known = [PUBLISHED[path.name]] if path.name in PUBLISHED else []
    record = path.parent / MADE
    if not record.is_file():
        return known
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        return [*known, KnownFile(**files[path.name])] if path.name in files else known
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{record}: not a file written by `make` ({error}); delete it or create the lists again"
        ) from None


def class_names(list_file: Path, num_classes: int) -> list[str] | None:
    """Return the names of the classes in label order, from the made.json beside a list; None if they are unknown.

    A note reports a made.json that cannot be read.

    Args:
        list_file: a list of the data set, such as `DataConfig.lists.files["train"]`.
        num_classes: C. A record with another number of names does not belong to the list.
    """
    file = list_file.parent / MADE
    if not file.is_file():
        return None
    try:
        record = read_json(file)
    except InputError as error:
        log(f"note: {error}; the classes have no names")
        return None
    names = record.get("classes")
    return names if are_texts(names) and len(names) == num_classes else None


def write_lists(folder: Path, texts: dict[str, str], made: dict) -> None:
    """Write lists (file name -> text), then made.json. Existing lists must have the same content.

    Raises:
        InputError: the folder holds a different list of the same name. Nothing is written.
    """
    for name, text in texts.items():
        if (folder / name).exists() and (folder / name).read_bytes() != text.encode():
            raise InputError(f"{folder / name}: a different list exists; delete it or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    files = {name: fingerprint(text.encode())._asdict() for name, text in texts.items()}
    write_text(folder / MADE, json.dumps({**made, "files": files}, indent=1, ensure_ascii=False) + "\n")
