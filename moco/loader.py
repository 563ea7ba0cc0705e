"""Views of an image, a row of VIEWS each: bytes in the loader's workers, the model's input on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms as T

from moco import jitter
from moco.jitter import Jittered
from utils.errors import InputError


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
        return to_pixels(self.affine(image))


def colour_jitter(ranges: T.ColorJitter, pixels: Tensor, device_aug: bool) -> Tensor | Jittered:
    """Brightness, contrast and saturation, with torchvision's draws."""
    factors, order = jitter.draw(ranges)
    if device_aug:
        return Jittered(pixels, torch.tensor(factors), torch.tensor(order))
    return jitter.on_host(pixels, factors, order)


@dataclass(frozen=True)
class View:
    """How an RGB image becomes the network's input, of any size.

    geometry: of training, made from (size, device_aug): its `prepare` is done once for both views of an
        image, its `draw` on what that gives, for each: (3, size, size) uint8.
    colour: what training does to such pixels, given device_aug: the same again, or Jittered; None: nothing.
    frame: of evaluation, made from the size: the square of an image that is looked at.
    """

    geometry: Callable
    colour: Callable[[Tensor, bool], Tensor | Jittered] | None
    frame: Callable[[int], Callable[[Image.Image], Image.Image]]


def _centre(size: int) -> T.Compose:
    """Resize(256) and CenterCrop(224), or in that proportion."""
    return T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size)])


PHOTO_JITTER = partial(colour_jitter, T.ColorJitter(0.4, 0.4, 0.4, 0))
VIEWS = {
    "photo": View(PhotoCrop, PHOTO_JITTER, _centre),  # the release's
    "thumbnail": View(PhotoCrop, PHOTO_JITTER, T.Resize),  # whole already
    "digit": View(lambda size, _: DigitShift(size), partial(colour_jitter, T.ColorJitter(contrast=0.4)), T.Resize),
}


def view_named(name: str) -> View:
    """The row of VIEWS, or an InputError that lists them."""
    if name not in VIEWS:
        raise InputError(f'view "{name}": expected one of {", ".join(VIEWS)}, the rows of VIEWS in moco/loader.py')
    return VIEWS[name]


class RandomView:
    """One random view of a decoded image, by the geometry and colour of a View."""

    def __init__(self, geometry, colour: Callable | None, device_aug: bool):
        self.geometry, self.colour, self.device_aug = geometry, colour, device_aug

    def __call__(self, image: Image.Image) -> Tensor | Jittered:
        """(3, S, S) uint8, or with the factors beside it."""
        return self.draw(self.geometry.prepare(image))

    def draw(self, prepared: Image.Image | Tensor) -> Tensor | Jittered:
        pixels = self.geometry.draw(prepared)
        return self.colour(pixels, self.device_aug) if self.colour else pixels


class TwoCropsTransform:
    """Two random views of one decoded image: [query view, key view]."""

    def __init__(self, view: RandomView):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor | Jittered]:
        prepared = self.view.geometry.prepare(image)
        return [self.view.draw(prepared), self.view.draw(prepared)]


def train_transform(view: str, image_size: int, device_aug: bool = False, colour: bool = True) -> RandomView:
    """One random view: RGB image to (3, image_size, image_size) uint8, which `Normalise` takes on.

    colour: with the view's. device_aug: the same draws, resized faster and jittered on the device; see --help.
    """
    row = view_named(view)
    return RandomView(row.geometry(image_size, device_aug), row.colour if colour else None, device_aug)


def eval_transform(view: str, image_size: int) -> T.Compose:
    """The one view of evaluation, uint8 as in training."""
    return T.Compose([view_named(view).frame(image_size), to_pixels])


class Normalise:
    """The loader's batches to the model's input: bytes cross to the device, floats are made there.

    Jitter left to the device is done in one matrix product; only its result is clipped, not
    each of the three steps, and nothing is rounded. On photographs at 224 px that is 1.6 of 255
    from `jitter.on_host` on average, 1.4 of it because bytes are rounded down after each step,
    and 50 at most, where a colour clips on the way.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.device = device
        self.mean, self.std = torch.tensor([mean, std], device=device)[:, :, None, None]  # (3, 1, 1) each

    def __call__(self, view: Tensor | Jittered) -> Tensor:
        """(N, 3, S, S) uint8, with or without jitter to be done, to float32 on the device, normalised."""
        tensors = view if isinstance(view, Jittered) else (view,)
        pixels, *drawn = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        x = pixels.float().div_(255)
        if drawn:
            matrix, offset = jitter.affine_maps(x.mean((2, 3)), *drawn)
            x = torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).clamp_(0, 1).view_as(x)
        return x.sub_(self.mean).div_(self.std)
