"""Colour augmentations: parameters, and the transforms that loader workers apply."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from moco.views import jitter
from moco.views.geometry import to_pixels
from moco.views.jitter import PendingJitter

BLUR = (0.1, 2.0)  # smallest and largest standard deviation in pixels (SimCLR)


@dataclass(frozen=True)
class Colours:
    """Jitter, then grey, then blur, each with a probability. Samples the same parameters as torchvision.

    jitter: Strengths of brightness, contrast, saturation and hue, as for torchvision's ColorJitter.
    """

    jitter: tuple[float, float, float, float]
    jitter_p: float = 1.0
    grey_p: float = 0.0
    blur_p: float = 0.0

    @property
    def is_jitter_only(self) -> bool:
        """Whether every view gets jitter without hue, and nothing else. moco.views.jitter implements this case."""
        return not self.jitter[3] and self.jitter_p == 1 and not self.grey_p and not self.blur_p

    @cached_property
    def ranges(self) -> T.ColorJitter:
        return T.ColorJitter(*self.jitter)

    @cached_property
    def _on_pillow(self) -> T.Compose:
        parts = [T.RandomApply([self.ranges], self.jitter_p), T.RandomGrayscale(self.grey_p)]
        return T.Compose([*parts, *([T.RandomApply([_blur], self.blur_p)] if self.blur_p else [])])

    def __call__(self, pixels: Tensor, device_aug: bool) -> Tensor | PendingJitter:
        """Augment (3, S, S) uint8. With device_aug, a jitter without other operations is sampled but not applied."""
        if not self.is_jitter_only:
            return to_pixels(self._on_pillow(to_image(pixels)))
        factors, order = jitter.draw(self.ranges)
        if device_aug:
            return PendingJitter(pixels, torch.tensor(factors), torch.tensor(order))
        return jitter.on_host(pixels, factors, order)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*BLUR))))


def to_image(pixels: Tensor) -> Image.Image:
    """Convert (3, H, W) uint8 to an RGB image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0)))


class CifarAutoAugment:
    """torchvision's AutoAugment policy for CIFAR-10 (Cubuk et al. 2019)."""

    name = "AutoAugment"

    def __init__(self):
        self.policy = T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)

    def __call__(self, pixels: Tensor, device_aug: bool) -> Tensor:
        return to_pixels(self.policy(to_image(pixels)))


class RandAugment:
    """Colour jitter, then torchvision's RandAugment (Cubuk et al. 2020) with the settings of BCL: n = 2, m = 10.

    The authors of BCL use timm's scale and probability: 10 is the largest magnitude, and each of the two operations
    is applied with probability 0.5. Pixels from outside of the image get ImageNet's mean colour.
    """

    name = "RandAugment"

    def __init__(self, jitter: Colours):
        operation = T.RandAugment(1, 10, 11, interpolation=T.InterpolationMode.BILINEAR, fill=[124, 116, 104])
        self.jitter, self.policy = jitter, T.Compose([T.RandomApply([operation], p=0.5)] * 2)

    def __call__(self, pixels: Tensor, device_aug: bool) -> Tensor:
        """Augment (3, S, S) uint8."""
        return to_pixels(self.policy(to_image(self.jitter(pixels, False))))


def cut_out(pixels: Tensor, share: float, fill: Sequence[float]) -> Tensor:
    """Apply Cutout (DeVries and Taylor 2017) in place: fill a square around a random pixel, clipped at the border.

    Args:
        pixels: (3, S, S) uint8.
        share: Side of the square, as a share of the image side.
        fill: Mean colour of the data set in [0, 1]. After normalisation it is 0, up to rounding.
    """
    size = pixels.shape[1]
    half = round(share * size) // 2
    y, x = (int(torch.randint(size, ())) for _ in range(2))
    hole = pixels[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half]
    hole.copy_(torch.tensor([round(255 * value) for value in fill], dtype=torch.uint8)[:, None, None])
    return pixels
