"""Geometric augmentations, each with two methods that loader workers call.

`prepare` runs once per image. `draw` runs once per view on its result and returns (3, size, size) uint8. It draws from
torch's global random generator as torchvision does. device_aug: see `ResizedCrop`; the others ignore it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms as T
from torchvision.transforms import functional as F

BILINEAR = T.InterpolationMode.BILINEAR


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to (3, H, W) uint8."""
    return torch.from_numpy(np.stack(image.split()))


def _flip_randomly(pixels: Tensor) -> Tensor:
    return pixels.flip(2) if torch.rand(1) < 0.5 else pixels


@dataclass(frozen=True)
class ResizedCrop:
    """RandomResizedCrop, followed by RandomHorizontalFlip.

    With device_aug, torch's uint8 kernel resizes. It takes a third of Pillow's time, and each byte is within 1 of
    Pillow's. Otherwise the result equals torchvision's on Pillow images.

    Attributes:
        scale: Smallest and largest crop, as a share of the image area.
        ratio: Smallest and largest aspect ratio (width / height).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def prepare(self, image: Image.Image, size: int, device_aug: bool) -> Image.Image | Tensor:
        # (3, H, W) with channels last in memory, which the kernel requires
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if device_aug else image

    def draw(self, image: Image.Image | Tensor, size: int) -> Tensor:
        top, left, height, width = T.RandomResizedCrop.get_params(image, self.scale, self.ratio)
        if isinstance(image, Tensor):
            box = image[None, :, top : top + height, left : left + width]
            return _flip_randomly(interpolate(box, (size, size), mode="bilinear", antialias=True)[0].contiguous())
        # Crop before resizing: resize(box=...) also uses pixels outside of the box, and is not faster.
        box = image.crop((left, top, left + width, top + height))
        return _flip_randomly(to_pixels(box.resize((size, size), Image.Resampling.BILINEAR)))


@dataclass(frozen=True)
class Affine:
    """RandomAffine: small rotation, translation and scaling, for digits. No flip: it changes the symbol.

    Attributes:
        degrees: Largest rotation in either direction.
        translate: Largest translation, as a share of the side.
        scale: Smallest and largest scale.
    """

    degrees: float = 12
    translate: float = 0.1
    scale: tuple[float, float] = (0.85, 1.15)

    def prepare(self, image: Image.Image, size: int, device_aug: bool) -> Image.Image:
        return F.resize(image, [size, size])

    def draw(self, image: Image.Image, size: int) -> Tensor:
        degrees, translate = (-self.degrees, self.degrees), (self.translate, self.translate)
        params = T.RandomAffine.get_params(degrees, translate, self.scale, None, [size, size])
        return to_pixels(F.affine(image, *params, interpolation=BILINEAR))


@dataclass(frozen=True)
class PaddedCrop:
    """RandomCrop of an image with a black border, followed by RandomHorizontalFlip.

    padding: Width of the border on each side, as a share of the image side.
    """

    padding: float = 1 / 8

    def prepare(self, image: Image.Image, size: int, device_aug: bool) -> Image.Image:
        return F.pad(F.resize(image, [size, size]), self.border(size))

    def draw(self, image: Image.Image, size: int) -> Tensor:
        box = T.RandomCrop.get_params(image, (size, size))
        return _flip_randomly(to_pixels(F.crop(image, *box)))

    def border(self, size: int) -> int:
        return round(self.padding * size)
