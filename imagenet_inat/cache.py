"""A cache of a list's decoded images, because small images cost more to decode than to train on."""

from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils import distributed
from utils.distributed import log
from utils.errors import InputError

LIMIT = 2 * 2**30  # bytes per list, over all processes of the job
SAMPLE_SIZE = 16  # images that are decoded to estimate whether a list fits
PROGRESS_BAR_FROM = 20_000  # lists with at least as many images show a progress bar


class DecodedImages:
    """All images of a list in one tensor, which forked workers share.

    Attributes:
        flat: the pixels of all images, (bytes,) uint8.
        starts: the offset of each image in `flat`, and the end of the last one.
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

    def stacked_pixels(self) -> Tensor | None:
        """Return all images, (n, H, W, 3) uint8, or None if they differ in size."""
        return self.flat.view(len(self.sizes), *self.sizes[0], 3) if len(set(self.sizes)) == 1 else None


class SizeEstimate(NamedTuple):
    """An estimate of the memory that a list's decoded images need, from a sample of them.

    Attributes:
        total: the bytes of all images.
        size: the (width, height) of all images of the sample, or None if they differ.
    """

    total: float
    size: tuple[int, int] | None

    def fits(self, processes: int) -> bool:
        """Whether each of the processes may keep the images in memory."""
        return self.total <= LIMIT / processes


def estimate_size(count: int, read: Callable[[int], Image.Image]) -> SizeEstimate:
    """Estimate the memory of `count` decoded images from a sample of them. Unreadable images are skipped.

    Args:
        read: returns the image of a number, or raises InputError.
    """
    sizes = []
    for number in dict.fromkeys(np.linspace(0, count - 1, SAMPLE_SIZE).round().astype(int).tolist()):
        try:
            sizes.append(read(number).size)
        except InputError:  # reported when the image is used
            continue
    bytes_each = np.mean([3 * width * height for width, height in sizes]) if sizes else np.inf
    return SizeEstimate(float(bytes_each * count), sizes[0] if len(set(sizes)) == 1 else None)


def all_have_size(size: tuple[int, int], count: int, read: Callable[[int], Image.Image], name: str) -> bool:
    """Return whether all readable images have this (width, height). For the other arguments, see `decode`."""
    hidden = count < PROGRESS_BAR_FROM or not distributed.is_main()
    for number in tqdm(range(count), f"sizes of {name}", disable=hidden):
        with suppress(InputError):  # reported when the image is used
            if read(number).size != size:
                return False
    return True


def decode(count: int, read: Callable[[int], Image.Image], name: str) -> DecodedImages | None:
    """Decode `count` images. If they exceed LIMIT, log a note and return None.

    Args:
        read: returns the image of a number, or raises InputError.
        name: the list's name, for messages.
    """
    images, total = [], 0
    for number in tqdm(
        range(count), f"decoding {name}", disable=count < PROGRESS_BAR_FROM or not distributed.is_main()
    ):
        try:
            images.append(np.array(read(number)))
        except InputError:  # reported when the image is used
            images.append(None)
            continue
        total += images[-1].nbytes
        if total > LIMIT / distributed.world_size():
            log(
                f"note: {name}: images exceed {LIMIT / 2**30:.2g} GB over all processes (after {number + 1} of "
                f"{count}); the files are read again each time, with the same results"
            )
            return None
    return DecodedImages(images)


_LIVE: WeakValueDictionary = WeakValueDictionary()  # weak: entries are freed with the last data set that uses them


def get_or_decode(key: tuple, decode: Callable[[], DecodedImages | None]) -> DecodedImages | None:
    """Return the images that another data set still holds for this key, otherwise decode()."""
    images = _LIVE.get(key)
    if images is None and (images := decode()) is not None:
        _LIVE[key] = images
    return images
