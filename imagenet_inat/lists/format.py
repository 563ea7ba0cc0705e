"""Split lists, `<path relative to the data root> <label>` a line: read strictly, held as arrays."""

import re
from pathlib import Path

import numpy as np

from utils.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
STRAY_BYTE = re.compile(rb"\r(?!\n)|\0")  # a carriage return that ends no line, or NUL: in no file name of a list


def read_split(path: Path, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Read a split list.

    The label is what follows the last space or tab, so names may hold spaces. Windows
    line ends, a byte-order mark and a last line without its end are read as if they
    were not there. The data root is all that a list may reach.

    Args:
        num_classes: C, or None where the list itself says it (see `count_classes`).

    Returns:
        paths: (n,) array of UTF-8 bytes (one block of memory that loader workers
        share, not n Python strings); labels: (n,) int64.

    Raises:
        InputError: no file, not text, empty, or a line that is no path below the data root and a label of
            num_classes; file and line are named.
    """
    lines = _lines(path)
    limit = len(lines) if num_classes is None else num_classes  # n lines have at most n classes
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        try:
            image, label = line.rsplit(None, 1)  # at ASCII blanks only: a name may hold any other
            if not label.isdigit() and not label.removeprefix(b"-").isdigit():  # int() also takes "1_0" and "+1"
                raise ValueError
            label = int(label)
        except ValueError:
            shown = line[:80].decode(errors="replace").rstrip("\r")
            raise InputError(f'{path}:{number}: found "{shown}", expected "<path> <label>"') from None
        if not 0 <= label < limit:
            most = "" if num_classes else f" at most, for {limit} lines"
            raise InputError(f"{path}:{number}: label {label}, expected 0 to {limit - 1}{most}")
        if image.startswith(b"/") or (b".." in image and b".." in image.split(b"/")):
            raise InputError(
                f'{path}:{number}: "{image.decode()}" leaves the data root; expected a path below it, without ".."'
            )
        paths.append(image)
        labels.append(label)
    return np.array(paths), np.array(labels, dtype=np.int64)


def _lines(path: Path) -> list[bytes]:
    """The lines of a text file that is one, without their ends (but for a carriage return)."""
    try:
        data = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        data.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    if stray := STRAY_BYTE.search(data):
        number = data.count(b"\n", 0, stray.start()) + 1
        raise InputError(f"{path}:{number}: holds the byte {stray.group()!r}, expected lines that end in \\n or \\r\\n")
    if not data:
        raise InputError(f"{path}: empty, expected one '<path> <label>' a line")
    return data.removesuffix(b"\n").split(b"\n")


def count_classes(path: Path, labels: np.ndarray) -> int:
    """C of a training list; raises InputError unless its labels are 0 ... C−1, each with an image."""
    counts = np.bincount(labels)
    if not counts.all():
        gap = int(np.flatnonzero(counts == 0)[0])
        raise InputError(
            f"{path}: no line has the label {gap}, but the largest is {len(counts) - 1}; "
            "expected every label from 0 on, without a gap"
        )
    return len(counts)


def split_text(paths: list[str], labels: list[int]) -> str:
    """The text of a split list; raises InputError for a path that it cannot hold."""
    for path in paths:
        if re.search(r"[\r\n\0]|[ \t\f\v]$|[\ud800-\udfff]", path):  # the last: a name that is not UTF-8
            raise InputError(f"{path!r}: a list cannot hold this name; rename the file")
    return "".join(f"{path} {label}\n" for path, label in zip(paths, labels, strict=True))


def made_folders(set_name: str, data_root: Path, imbalance: float, largest: int | None = None) -> tuple[Path, Path]:
    """Of a set that is made: the folder that its lists' paths start from, and the folder of the lists.

    largest: images of the largest class, where --largest says so.
    """
    root = Path(data_root) / set_name
    return root, root / (f"imbalance_{imbalance:g}" + (f"_largest_{largest}" if largest else ""))
