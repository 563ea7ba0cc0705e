"""Colour jitter: on the host byte for byte as Pillow does it, or on the device as one affine map an image.

Brightness, contrast and saturation each blend an image x with a degenerate d of it, d + f·(x - d):
d is black, the image's mean luma, or each pixel's own luma. Done in a random order.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import transforms as T

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # torchvision's numbers
LUMA = (19595 / 2**16, 38470 / 2**16, 7471 / 2**16)  # of R, G, B in Pillow; exact in float32 for bytes


@functools.lru_cache
def on(device: torch.device, *values: float) -> Tensor:
    """float32 numbers on the device, sent there once: the host would wait for all that is queued."""
    return torch.tensor(values, dtype=torch.float32, device=device)


class Jittered(NamedTuple):
    """Views and the jitter still to be done on them; a loader worker's has no N.

    pixels: (N, 3, S, S) uint8. factors: (N, 3) float32, of brightness, contrast and
    saturation, 1 for one that is left out. order: (N, 3) int64, the first to the last.
    """

    pixels: Tensor
    factors: Tensor
    order: Tensor


def draw(ranges: T.ColorJitter) -> tuple[list[float], list[int]]:
    """Factors and order, three each as in Jittered: what torchvision would draw from torch's global generator."""
    order, *factors, _ = T.ColorJitter.get_params(ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    factors = [1.0 if factor is None else factor for factor in factors]
    return factors, [kind for kind in order.tolist() if kind <= SATURATION]


def on_host(pixels: Tensor, factors: list[float], order: list[int]) -> Tensor:
    """Jitter one view, (3, S, S) uint8 to the same, bit for bit as torchvision: bytes after each of the three."""
    x = pixels.float()
    for kind in order:
        factor = factors[kind]
        if factor == 1:
            continue
        if kind == BRIGHTNESS:
            x.mul_(factor)
        else:
            degenerate = _luma(x)  # (S, S)
            if kind == CONTRAST:  # a float64 sum of whole numbers: exact, whatever the number of threads
                degenerate = int(degenerate.mean(dtype=torch.float64) + 0.5)
            x.sub_(degenerate).mul_(factor).add_(degenerate)
        if factor > 1:  # below, the result lies between the two
            x.clamp_(0, 255)
        x.floor_()
    return torch.from_numpy(x.numpy().astype("uint8"))  # 4 times faster than torch's conversion


def _luma(x: Tensor) -> Tensor:
    """Luma of a (3, S, S) image as whole numbers, (S, S)."""
    red, green, blue = x
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).add_(0.5).floor_()


def apply_affine(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The jitter of (N, 3, S, S) images of 0 to 1, clipped once in the end; factors, order: see Jittered."""
    matrix, offset = affine_maps(x.mean((2, 3)), factors, order)
    return torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).clamp_(0, 1).view_as(x)


def affine_maps(mean: Tensor, factors: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The jitter of each image as one map of its pixels, x -> matrix @ x + offset, without rounding and clipping.

    Contrast needs the mean luma of the image as it is by then; all before it is
    affine, so that follows from the mean of the untouched image.

    Args:
        mean: (N, 3), the images' mean colours. factors, order: see Jittered.

    Returns:
        (N, 3, 3) and (N, 3).
    """
    luma = on(mean.device, *LUMA)
    matrix, offset = torch.eye(3, device=mean.device).expand(len(mean), 3, 3), torch.zeros_like(mean)
    for kind, factor in zip(order.T, factors.gather(1, order).T, strict=True):  # (N,) each
        row, level = luma @ matrix, offset @ luma  # (N, 3), (N,): by now the luma is row @ x + level
        mean_luma = (row * mean).sum(1) + level  # (N,)
        by_pixel = (1 - factor) * (kind == SATURATION)  # (N,)
        constant = by_pixel * level + (1 - factor) * (kind == CONTRAST) * mean_luma
        matrix = factor[:, None, None] * matrix + (by_pixel[:, None] * row)[:, None, :]
        offset = factor[:, None] * offset + constant[:, None]
    return matrix, offset
