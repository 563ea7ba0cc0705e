"""The decoded images of a list, kept as bytes: small images cost more to open and decode than to train on."""

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

LIMIT = 2 * 2**30  # bytes of all images of a list, over the processes of the job
SAMPLED = 16  # images whose size tells whether a list may fit
SLOW = 20_000  # images from which on a bar is shown


class Pixels:
    """All images of a list, one after the other: a worker's process that is forked shares them.

    flat: (bytes,) uint8. starts: where each begins, and the end. sizes: (height, width) of each, (0, 0) of one that
    could not be read.
    """

    def __init__(self, images: list[np.ndarray | None]):
        self.sizes = [(0, 0) if image is None else image.shape[:2] for image in images]
        self.starts = [0, *accumulate(3 * height * width for height, width in self.sizes)]
        self.flat = torch.empty(self.starts[-1], dtype=torch.uint8)
        for number, image in enumerate(images):
            if image is not None:
                self.flat[self.starts[number] : self.starts[number + 1]] = torch.from_numpy(image).flatten()
                images[number] = None  # what has been copied is let go

    def image(self, number: int) -> Image.Image | None:
        """None for one that could not be read."""
        height, width = self.sizes[number]
        if not height:
            return None
        pixels = self.flat[self.starts[number] : self.starts[number + 1]]
        return Image.fromarray(pixels.view(height, width, 3).numpy())

    def of_one_size(self) -> Tensor | None:
        """(n, H, W, 3), or None where the images differ in size."""
        return self.flat.view(len(self.sizes), *self.sizes[0], 3) if len(set(self.sizes)) == 1 else None


class Sample(NamedTuple):
    """What some images of a list tell of all: the bytes of all, and whether those looked at have one size."""

    total: float
    one_size: bool

    def fits(self, processes: int) -> bool:
        return self.total <= LIMIT / processes


def sample(count: int, read: Callable[[int], Image.Image]) -> Sample:
    """Look at some of `count` images; those that cannot be read tell nothing.

    read: the image of a number; raises InputError.
    """
    sizes = []
    for number in dict.fromkeys(np.linspace(0, count - 1, SAMPLED).round().astype(int).tolist()):
        try:
            sizes.append(read(number).size)
        except InputError:  # it is said where the image is needed
            continue
    bytes_each = np.mean([3 * width * height for width, height in sizes]) if sizes else np.inf
    return Sample(float(bytes_each * count), len(set(sizes)) == 1)


def decode(count: int, read: Callable[[int], Image.Image], name: str) -> Pixels | None:
    """All of `count` images; None, with a line that says so, where they turn out to be more than LIMIT.

    name: of the list, for messages.
    """
    images, total = [], 0
    for number in tqdm(range(count), f"decoding {name}", disable=count < SLOW or not distributed.is_main()):
        try:
            images.append(np.array(read(number)))
        except InputError:  # it is said where the image is needed
            images.append(None)
            continue
        total += images[-1].nbytes
        if total > LIMIT / distributed.world_size():
            say(
                f"note: {name}: its images are more than {LIMIT / 2**30:.2g} GB over all processes, found after "
                f"{number + 1} of {count}: they are read from their files each time, with the same results"
            )
            return None
    return Pixels(images)


_KEPT: WeakValueDictionary = WeakValueDictionary()  # by what is decoded; let go with the last data set that has it


def shared(key: tuple, make: Callable[[], Pixels | None]) -> Pixels | None:
    """make(), or what it gave for this key to a data set that still has it."""
    pixels = _KEPT.get(key)
    if pixels is None and (pixels := make()) is not None:
        _KEPT[key] = pixels
    return pixels
