"""IDX files, gzipped or not: all images, or all labels, of a part of MNIST's kind of data set in one file.

A split list names an image in one as <file>-idx3-ubyte/<number>; the file lies below the data root, as it is or as .gz.
"""

import gzip
import math
import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.errors import InputError

IMAGE = re.compile(r"(.*-idx3-ubyte)/(\d+)")
UNSIGNED_BYTE = 8


def is_inside(path: str) -> bool:
    """Whether a list's path leads into an IDX file."""
    return IMAGE.fullmatch(path) is not None


def image(root: Path, path: str) -> np.ndarray:
    """(H, W) uint8, the grey image at a list's path; the file is read once.

    Raises:
        InputError: as `read`; or there is no image of that number in it.
    """
    name, number = IMAGE.fullmatch(path).groups()
    file = found(root / name)
    images = _kept(file)
    if int(number) >= len(images):
        raise InputError(f"{file}: no image {number}, it holds {len(images)}")
    return images[int(number)]


def found(file: Path) -> Path:
    """The file or, where that is not there, its .gz."""
    return file if file.is_file() else file.with_name(f"{file.name}.gz")


@lru_cache(maxsize=4)
def _kept(file: Path) -> np.ndarray:
    return read(file, 3)


def read(file: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes: (n, H, W) uint8 of three dimensions, (n,) of one.

    Raises:
        InputError: missing, cut off, or something else.
    """
    header = 4 + 4 * dimensions
    start, wanted = content(file, header), bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if start[:4] != wanted or len(start) < header:
        found, kind = start[:4].hex(), KINDS[dimensions]
        raise InputError(f"{file}: begins with {found}, expected {wanted.hex()}, an IDX file's {kind}")
    shape = [int(number) for number in np.frombuffer(start, ">u4", dimensions, offset=4)]
    size, said = math.prod(shape), " × ".join(map(str, shape))
    if not 0 < size <= MOST:
        raise InputError(f"{file}: says {said} bytes, expected 1 to {MOST:,}")
    data = content(file, header + size + 1)  # a byte more, if there is one; never all that a small archive may hold
    if len(data) != header + size:
        rest = "more" if len(data) > header + size else f"{len(data) - header:,}"
        raise InputError(f"{file}: says {said} bytes and holds {rest}; it is cut off or not whole")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


KINDS = {1: "labels", 3: "images"}
MOST = 2**31  # bytes


def content(file: Path, most: int = MOST) -> bytes:
    """The first bytes of what the file holds, unzipped; raises InputError: it cannot be read."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            return opened.read(most)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file, with or without .gz") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read, it may be cut off ({error})") from None
