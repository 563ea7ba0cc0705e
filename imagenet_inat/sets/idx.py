"""Read IDX files, the format of MNIST, which hold all images or all labels of a split. They may be gzipped.

In a split list, <file>-idx3-ubyte/<number> is an image in an IDX file below the data root, which may end in .gz.
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
    """Return whether a list's path leads into an IDX file."""
    return IMAGE.fullmatch(path) is not None


def image(root: Path, path: str) -> np.ndarray:
    """Return the grey image at a list's path, (H, W) uint8. The file is read only once.

    Raises:
        InputError: as `read`; or the file holds no image of this number.
    """
    name, number = IMAGE.fullmatch(path).groups()
    file = find_file(root / name)
    images = _read_images(file)
    if int(number) >= len(images):
        raise InputError(f"{file}: no image {number}, the file holds {len(images)}")
    return images[int(number)]


def find_file(file: Path) -> Path:
    """Return the file if it exists, otherwise its name with .gz."""
    return file if file.is_file() else file.with_name(f"{file.name}.gz")


@lru_cache(maxsize=4)
def _read_images(file: Path) -> np.ndarray:
    return read(file, 3)


def read(file: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes: (n, H, W) uint8 for 3 dimensions (images), (n,) uint8 for 1 (labels).

    Raises:
        InputError: the file is missing, truncated or not such an IDX file.
    """
    header = 4 + 4 * dimensions
    start, magic = content(file, header), bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if start[:4] != magic or len(start) < header:
        magic_hex, kind = start[:4].hex(), KINDS[dimensions]
        raise InputError(f"{file}: begins with {magic_hex}, expected {magic.hex()} (IDX file of {kind})")
    shape = [int(number) for number in np.frombuffer(start, ">u4", dimensions, offset=4)]
    size, shape_text = math.prod(shape), " × ".join(map(str, shape))
    if not 0 < size <= MAX_BYTES:
        raise InputError(f"{file}: the header gives {shape_text} bytes, expected 1 to {MAX_BYTES:,}")
    data = content(file, header + size + 1)  # one byte more detects excess data without unpacking all of an archive
    if len(data) != header + size:
        rest = "more" if len(data) > header + size else f"{len(data) - header:,}"
        raise InputError(f"{file}: the header gives {shape_text} bytes, the file holds {rest}; replace the file")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


KINDS = {1: "labels", 3: "images"}
MAX_BYTES = 2**31  # bytes


def content(file: Path, most: int = MAX_BYTES) -> bytes:
    """Return the first `most` bytes of a file, uncompressed. Raise InputError if the file cannot be read."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            return opened.read(most)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file, with or without .gz") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read, perhaps truncated ({error})") from None
