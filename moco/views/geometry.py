"""Geometric augmentations: parameters, and the transforms that loader workers apply.

Each set of parameters, called with (size, device_aug), returns a transform. The transform's `prepare` runs once per
image. Its `draw` runs once per view and returns (3, size, size) uint8, using torch's global random generator.
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
    """Convert an RGB image to (3, H, W) uint8."""
    return torch.from_numpy(np.stack(image.split()))


@dataclass(frozen=True)
class CropParams:
    """Parameters of RandomResizedCrop, followed by RandomHorizontalFlip.

    Attributes:
        scale: Smallest and largest crop, as a share of the image area.
        ratio: Smallest and largest aspect ratio (width / height).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, size: int, device_aug: bool) -> "CropTransform":
        return CropTransform(size, device_aug, self)


class CropTransform:
    """RandomResizedCrop and RandomHorizontalFlip. Samples the same parameters as torchvision.

    device_aug: Resize with torch's uint8 kernel, which takes a third of Pillow's time; each byte is within 1 of
        Pillow's. Otherwise the result equals torchvision's on Pillow images.
    """

    def __init__(self, size: int, device_aug: bool, crop: CropParams = CropParams()):
        self.size, self.device_aug = size, device_aug
        self.crop = T.RandomResizedCrop(size, crop.scale, crop.ratio)

    def prepare(self, image: Image.Image) -> Image.Image | Tensor:
        # (3, H, W) with channels last in memory, which the kernel requires
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if self.device_aug else image

    def draw(self, image: Image.Image | Tensor) -> Tensor:
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        size = (self.size, self.size)
        if self.device_aug:
            box = image[None, :, top : top + height, left : left + width]
            pixels = interpolate(box, size, mode="bilinear", antialias=True)[0].contiguous()
        else:
            # Crop before resizing: resize(box=...) also uses pixels outside of the box, and is not faster.
            box = image.crop((left, top, left + width, top + height))
            pixels = to_pixels(box.resize(size, Image.Resampling.BILINEAR))
        return pixels.flip(2) if torch.rand(1) < 0.5 else pixels


@dataclass(frozen=True)
class AffineParams:
    """Parameters of RandomAffine: small rotation, translation and scaling, for digits. No flip: it changes the symbol.

    Attributes:
        degrees: Largest rotation in either direction.
        translate: Largest translation, as a share of the side.
        scale: Smallest and largest scale.
    """

    degrees: float = 12
    translate: float = 0.1
    scale: tuple[float, float] = (0.85, 1.15)

    def __call__(self, size: int, device_aug: bool) -> "AffineTransform":
        return AffineTransform(size, self)


class AffineTransform:
    """RandomAffine. Samples the same parameters as torchvision."""

    def __init__(self, size: int, params: AffineParams):
        self.prepare = T.Resize((size, size))
        self.affine = T.RandomAffine(params.degrees, (params.translate,) * 2, params.scale, interpolation=BILINEAR)

    def draw(self, image: Image.Image) -> Tensor:
        return to_pixels(self.affine(image))


@dataclass(frozen=True)
class PaddedCropParams:
    """Parameters of RandomCrop on an image with a black border, followed by RandomHorizontalFlip.

    padding: Width of the border on each side, as a share of the image side.
    """

    padding: float = 1 / 8

    def __call__(self, size: int, device_aug: bool) -> "PaddedCropTransform":
        return PaddedCropTransform(size, self)


class PaddedCropTransform:
    """RandomCrop with a black border, and RandomHorizontalFlip. Samples the same parameters as torchvision."""

    def __init__(self, size: int, params: PaddedCropParams):
        self.prepare = T.Resize((size, size))
        self.crop = T.Compose([T.RandomCrop(size, round(params.padding * size)), T.RandomHorizontalFlip()])

    def draw(self, image: Image.Image) -> Tensor:
        return to_pixels(self.crop(image))
