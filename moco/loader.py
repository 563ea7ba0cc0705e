"""Views of an image, from a data set's registry row: bytes in the loader's workers, the model's input on the device."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms as T

from imagenet_inat.datasets import DatasetSpec
from moco import jitter
from moco.jitter import Jittered


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.stack(image.split()))


class PhotoCrop:
    """The release's RandomResizedCrop and RandomHorizontalFlip, with torchvision's draws.

    fast: resize with torch's kernel for bytes, in a third of Pillow's time, each byte within
    1 of Pillow's; else equal to torchvision on Pillow images.
    """

    def __init__(self, size: int, fast: bool):
        self.size, self.fast = size, fast
        self.crop = T.RandomResizedCrop(size)

    def prepare(self, image: Image.Image) -> Image.Image | Tensor:
        # (3, H, W) with the channels last in memory, as the kernel wants it
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if self.fast else image

    def draw(self, image: Image.Image | Tensor) -> Tensor:
        """(3, size, size) uint8."""
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


class DigitShift:
    """Small rotation, shift and scale; a mirrored digit is another sign, so no flip."""

    def __init__(self, size: int):
        bilinear = T.InterpolationMode.BILINEAR
        self.prepare = T.Resize(size)
        self.affine = T.RandomAffine(12, translate=(0.1, 0.1), scale=(0.85, 1.15), interpolation=bilinear)

    def draw(self, image: Image.Image) -> Tensor:
        """(3, size, size) uint8."""
        return to_pixels(self.affine(image))


class RandomView:
    """One random view of a decoded image.

    Args:
        geometry: PhotoCrop or DigitShift. ranges: of the colour jitter, or None.
        device_aug: leave the jitter to `Normalise`, on the device.
    """

    def __init__(self, geometry: PhotoCrop | DigitShift, ranges: T.ColorJitter | None, device_aug: bool):
        self.geometry, self.ranges, self.device_aug = geometry, ranges, device_aug

    def __call__(self, image: Image.Image) -> Tensor | Jittered:
        """(3, S, S) uint8, or with the factors beside it."""
        return self.draw(self.geometry.prepare(image))

    def draw(self, prepared: Image.Image | Tensor) -> Tensor | Jittered:
        pixels = self.geometry.draw(prepared)
        if self.ranges is None:
            return pixels
        factors, order = jitter.draw(self.ranges)
        if self.device_aug:
            return Jittered(pixels, torch.tensor(factors), torch.tensor(order))
        return jitter.on_host(pixels, factors, order)


class TwoCropsTransform:
    """Two random views of one decoded image: [query view, key view]."""

    def __init__(self, view: RandomView):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor | Jittered]:
        prepared = self.view.geometry.prepare(image)
        return [self.view.draw(prepared), self.view.draw(prepared)]


def train_transform(spec: DatasetSpec, image_size: int, device_aug: bool = False) -> RandomView:
    """One random view: RGB image to (3, image_size, image_size) uint8, which `Normalise` takes on.

    Photographs: the release's RandomResizedCrop, flip and ColorJitter(0.4, 0.4, 0.4, 0).
    device_aug: the same draws, resized faster and jittered on the device; see --help.
    """
    if spec.view != "digit":
        geometry, ranges = PhotoCrop(image_size, fast=device_aug), T.ColorJitter(0.4, 0.4, 0.4, 0)
    else:
        geometry, ranges = DigitShift(image_size), T.ColorJitter(contrast=0.4)
    return RandomView(geometry, ranges if spec.jitter else None, device_aug)


def eval_transform(spec: DatasetSpec, image_size: int) -> T.Compose:
    """The one view of evaluation: Resize(256) and CenterCrop(224), or in that proportion; uint8 as in training."""
    if spec.view == "photo":
        frame = [T.Resize(round(image_size * 256 / 224)), T.CenterCrop(image_size)]
    else:
        frame = [T.Resize(image_size)]  # whole already
    return T.Compose([*frame, to_pixels])


class Normalise:
    """The loader's batches to the model's input: bytes cross to the device, floats are made there.

    Jitter left to the device is done in one matrix product; only its result is clipped, not
    each of the three steps, and nothing is rounded. On photographs at 224 px that is 1.6 of 255
    from `jitter.on_host` on average, 1.4 of it because bytes are rounded down after each step,
    and 50 at most, where a colour clips on the way.
    """

    def __init__(self, spec: DatasetSpec, device: torch.device):
        self.device = device
        self.mean, self.std = torch.tensor([spec.mean, spec.std], device=device)[:, :, None, None]  # (3, 1, 1) each

    def __call__(self, view: Tensor | Jittered) -> Tensor:
        """(N, 3, S, S) uint8, with or without jitter to be done, to float32 on the device, normalised."""
        tensors = view if isinstance(view, Jittered) else (view,)
        pixels, *drawn = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        x = pixels.float().div_(255)
        if drawn:
            matrix, offset = jitter.affine_maps(x.mean((2, 3)), *drawn)
            x = torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).clamp_(0, 1).view_as(x)
        return x.sub_(self.mean).div_(self.std)
