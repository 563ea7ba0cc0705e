"""Which part of an image a view shows: a few numbers each, which make what a loader's worker does.

Called with (size, fast) they give an object whose `prepare` is done once for all views of an image, its `draw` for
each: (3, size, size) uint8, by torch's global generator.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms as T

BILINEAR = T.InterpolationMode.BILINEAR


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.stack(image.split()))


@dataclass(frozen=True)
class Crop:
    """RandomResizedCrop and RandomHorizontalFlip. scale: the crop's share of the image, from and to."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, size: int, fast: bool) -> "PhotoCrop":
        return PhotoCrop(size, fast, self)


class PhotoCrop:
    """A Crop with torchvision's draws.

    fast: resize with torch's kernel for bytes, in a third of Pillow's time, each byte within
    1 of Pillow's; else equal to torchvision on Pillow images.
    """

    def __init__(self, size: int, fast: bool, crop: Crop = Crop()):
        self.size, self.fast = size, fast
        self.crop = T.RandomResizedCrop(size, crop.scale, crop.ratio)

    def prepare(self, image: Image.Image) -> Image.Image | Tensor:
        # (3, H, W) with the channels last in memory, as the kernel wants it
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if self.fast else image

    def draw(self, image: Image.Image | Tensor) -> Tensor:
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        size = (self.size, self.size)
        if self.fast:
            box = image[None, :, top : top + height, left : left + width]
            pixels = interpolate(box, size, mode="bilinear", antialias=True)[0].contiguous()
        else:
            # Cropped first: resize(box=...) looks past the edges of the box and is no faster.
            box = image.crop((left, top, left + width, top + height))
            pixels = to_pixels(box.resize(size, Image.Resampling.BILINEAR))
        return pixels.flip(2) if torch.rand(1) < 0.5 else pixels


@dataclass(frozen=True)
class Shift:
    """Small rotation, shift and scale; a mirrored digit is another sign, so no flip.

    degrees: at most, either way. translate: of the side, at most. scale: from and to.
    """

    degrees: float = 12
    translate: float = 0.1
    scale: tuple[float, float] = (0.85, 1.15)

    def __call__(self, size: int, fast: bool) -> "DigitShift":
        return DigitShift(size, self)


class DigitShift:
    """A Shift with torchvision's draws."""

    def __init__(self, size: int, shift: Shift):
        self.prepare = T.Resize((size, size))
        self.affine = T.RandomAffine(shift.degrees, (shift.translate,) * 2, shift.scale, interpolation=BILINEAR)

    def draw(self, image: Image.Image) -> Tensor:
        return to_pixels(self.affine(image))


@dataclass(frozen=True)
class PaddedCrop:
    """RandomCrop of an image with a black border, and RandomHorizontalFlip. padding: of the side, on each."""

    padding: float = 1 / 8

    def __call__(self, size: int, fast: bool) -> "BorderCrop":
        return BorderCrop(size, self)


class BorderCrop:
    """A PaddedCrop with torchvision's draws."""

    def __init__(self, size: int, crop: PaddedCrop):
        self.prepare = T.Resize((size, size))
        self.crop = T.Compose([T.RandomCrop(size, round(crop.padding * size)), T.RandomHorizontalFlip()])

    def draw(self, image: Image.Image) -> Tensor:
        return to_pixels(self.crop(image))
