"""Read and write split lists, which hold one `<path relative to the data root> <label>` per line."""

import re
from pathlib import Path

import numpy as np

from utils.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WNID_PATH = re.compile(rb"/?n\d{8}/")  # a path that begins with a class folder of ImageNet
STRAY_BYTE = re.compile(rb"\r(?!\n)|\0")  # NUL, or a carriage return inside a line


def read_split(path: Path, num_classes: int | None, wnid_folder: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Read a split list.

    The label follows the last space or tab, so paths may contain spaces. Windows line
    ends, a byte-order mark and a missing end of the last line are accepted. Paths must
    not lead out of the data root.

    Args:
        num_classes: C, or None if the list defines it (see `count_classes`).
        wnid_folder: folder of the class folders of ImageNet. `/n01440764/X` and `n01440764/X` become
            `<wnid_folder>/n01440764/X`. "": paths stay as they are.

    Returns:
        paths: (n,) array of UTF-8 bytes, one block of memory that loader workers share.
        labels: (n,) int64.

    Raises:
        InputError: the file is missing, empty or not text, or a line is not a path below
            the data root and a label below num_classes. The message names file and line.
    """
    lines = _lines(path)
    limit = len(lines) if num_classes is None else num_classes  # n lines have at most n classes
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        try:
            image, label = line.rsplit(None, 1)  # splits at ASCII blanks only; names may contain others
            if not label.isdigit() and not label.removeprefix(b"-").isdigit():  # int() also accepts "1_0" and "+1"
                raise ValueError
            label = int(label)
        except ValueError:
            excerpt = line[:80].decode(errors="replace").rstrip("\r")
            raise InputError(f'{path}:{number}: found "{excerpt}", expected "<path> <label>"') from None
        if not 0 <= label < limit:
            most = "" if num_classes else f" at most (the list has {limit} lines)"
            raise InputError(f"{path}:{number}: label {label}, expected 0 to {limit - 1}{most}")
        if wnid_folder and WNID_PATH.match(image):
            image = b"%s/%s" % (wnid_folder.encode(), image.removeprefix(b"/"))
        if image.startswith(b"/") or (b".." in image and b".." in image.split(b"/")):
            raise InputError(
                f'{path}:{number}: "{image.decode()}" is outside the data root; expected a relative path without ".."'
            )
        paths.append(image)
        labels.append(label)
    return np.array(paths), np.array(labels, dtype=np.int64)


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a UTF-8 file without \\n. Raise InputError if it is not a text file."""
    try:
        data = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        data.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    if stray := STRAY_BYTE.search(data):
        number = data.count(b"\n", 0, stray.start()) + 1
        raise InputError(f"{path}:{number}: found the byte {stray.group()!r}, expected lines that end in \\n or \\r\\n")
    if not data:
        raise InputError(f"{path}: empty, expected '<path> <label>' on each line")
    return data.removesuffix(b"\n").split(b"\n")


def count_classes(path: Path, labels: np.ndarray) -> int:
    """Return the number of classes C of a training list. Raise InputError unless each of 0, …, C−1 has an image."""
    counts = np.bincount(labels)
    if not counts.all():
        gap = int(np.flatnonzero(counts == 0)[0])
        raise InputError(
            f"{path}: no line has the label {gap}, the largest label is {len(counts) - 1}; "
            "expected every label from 0 to the largest"
        )
    return len(counts)


def format_split(paths: list[str], labels: list[int]) -> str:
    """Format a split list as text. Raise InputError if a path cannot be written in a list."""
    for path in paths:
        if re.search(r"[\r\n\0]|[ \t\f\v]$|[\ud800-\udfff]", path):  # surrogates: the name is not UTF-8
            raise InputError(f"{path!r}: lists cannot hold this file name; rename the file")
    return "".join(f"{path} {label}\n" for path, label in zip(paths, labels, strict=True))


def generated_folders(
    set_name: str, data_root: Path, imbalance: float, largest: int | None = None, split_seed: int = 0
) -> tuple[Path, Path]:
    """Return two folders of a generated data set: the root of the lists' paths, and the folder of the lists.

    Args:
        imbalance: --imbalance.
        largest: images of the largest class, or None without --largest.
        split_seed: --split-seed.
    """
    root = Path(data_root) / set_name
    parts = [f"imbalance_{imbalance:g}"]
    parts += [f"largest_{largest}"] if largest else []
    parts += [f"split_{split_seed}"] if split_seed else []
    return root, root / "_".join(parts)
