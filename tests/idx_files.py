"""IDX files in the layout of Fashion-MNIST, filled with noise."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write a uint8 array (n,) or (n, H, W); gzip it if the file name ends in .gz."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.tobytes()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def write_fashion_mnist(folder: Path, train_each: int, test_each: int, suffix: str = ".gz", size: int = 28) -> None:
    """Write the four files, with this many images of each of ten classes in a mixed order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, each in (("train", train_each), ("t10k", test_each)):
        labels = rng.permutation(np.arange(10, dtype=np.uint8).repeat(each))
        images = rng.integers(0, 256, (len(labels), size, size), dtype=np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
