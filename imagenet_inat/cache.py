"""A cache of a list's decoded images, because small images cost more to decode than to train on."""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils import distributed
from utils.distributed import say
from utils.errors import InputError

LIMIT = 2 * 2**30  # bytes per list, over all processes of the job
SAMPLED = 16  # images that are decoded to estimate whether a list fits
SLOW = 20_000  # lists with at least as many images show a progress bar


class Pixels:
    """All images of a list in one tensor, which forked workers share.

    Attributes:
        flat: the pixels of all images, (bytes,) uint8. starts: the offset of each image, and the end.
        sizes: (height, width) of each image, (0, 0) if it is unreadable.
    """

    def __init__(self, images: list[np.ndarray | None]):
        self.sizes = [(0, 0) if image is None else image.shape[:2] for image in images]
        self.starts = [0, *accumulate(3 * height * width for height, width in self.sizes)]
        self.flat = torch.empty(self.starts[-1], dtype=torch.uint8)
        for number, image in enumerate(images):
            if image is not None:
                self.flat[self.starts[number] : self.starts[number + 1]] = torch.from_numpy(image).flatten()
                images[number] = None  # free the copied image

    def image(self, number: int) -> Image.Image | None:
        """Return one image, or None if it is unreadable."""
        height, width = self.sizes[number]
        if not height:
            return None
        pixels = self.flat[self.starts[number] : self.starts[number + 1]]
        return Image.fromarray(pixels.view(height, width, 3).numpy())

    def of_one_size(self) -> Tensor | None:
        """Return all images, (n, H, W, 3) uint8, or None if they differ in size."""
        return self.flat.view(len(self.sizes), *self.sizes[0], 3) if len(set(self.sizes)) == 1 else None


class Sample(NamedTuple):
    """An estimate from some images of a list: the bytes of all images, and whether the sampled ones have one size."""

    total: float
    one_size: bool

    def fits(self, processes: int) -> bool:
        return self.total <= LIMIT / processes


def sample(count: int, read: Callable[[int], Image.Image]) -> Sample:
    """Estimate the memory of `count` images from some of them, without unreadable ones.

    Args:
        read: returns the image of a number, or raises InputError.
    """
    sizes = []
    for number in dict.fromkeys(np.linspace(0, count - 1, SAMPLED).round().astype(int).tolist()):
        try:
            sizes.append(read(number).size)
        except InputError:  # reported when the image is used
            continue
    bytes_each = np.mean([3 * width * height for width, height in sizes]) if sizes else np.inf
    return Sample(float(bytes_each * count), len(set(sizes)) == 1)


def decode(count: int, read: Callable[[int], Image.Image], name: str) -> Pixels | None:
    """Decode `count` images. If they exceed LIMIT, log a note and return None.

    Args:
        read: returns the image of a number, or raises InputError. name: the list's name, for messages.
    """
    images, total = [], 0
    for number in tqdm(range(count), f"decoding {name}", disable=count < SLOW or not distributed.is_main()):
        try:
            images.append(np.array(read(number)))
        except InputError:  # reported when the image is used
            images.append(None)
            continue
        total += images[-1].nbytes
        if total > LIMIT / distributed.world_size():
            say(
                f"note: {name}: images exceed {LIMIT / 2**30:.2g} GB over all processes (after {number + 1} of "
                f"{count}); the files are read again each time, with the same results"
            )
            return None
    return Pixels(images)


_KEPT: WeakValueDictionary = WeakValueDictionary()  # freed with the last data set that uses it


def shared(key: tuple, make: Callable[[], Pixels | None]) -> Pixels | None:
    """Return the pixels that another data set still holds for this key, otherwise make()."""
    pixels = _KEPT.get(key)
    if pixels is None and (pixels := make()) is not None:
        _KEPT[key] = pixels
    return pixels
