"""Colour jitter: on the CPU bit for bit as Pillow does it, or on the device as one affine map per image.

Brightness, contrast and saturation each blend an image x with a degenerate image d: d + f·(x - d). For brightness d is
black, for contrast the image's mean luma, for saturation each pixel's own luma. The order is random.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import transforms as T

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # torchvision's numbers
LUMA = (19595 / 2**16, 38470 / 2**16, 7471 / 2**16)  # Pillow's weights of R, G, B; exact in float32 for uint8 values


@functools.lru_cache
def cached_constant(device: torch.device, *values: float) -> Tensor:
    """Return a float32 tensor of constants on the device.

    It is cached, because each copy to the device makes the host wait for all queued kernels.
    """
    return torch.tensor(values, dtype=torch.float32, device=device)


class PendingJitter(NamedTuple):
    """Views whose colour jitter has been sampled but not applied. In a loader worker, there is no dimension N.

    Attributes:
        pixels: (N, 3, S, S) uint8.
        factors: (N, 3) float32 factors of brightness, contrast and saturation; 1 means no change.
        order: (N, 3) int64, the operations from first to last.
    """

    pixels: Tensor
    factors: Tensor
    order: Tensor


def draw(ranges: T.ColorJitter) -> tuple[list[float], list[int]]:
    """Sample factors and order, as in `PendingJitter`. Uses torch's global generator exactly as torchvision does."""
    order, *factors, _ = T.ColorJitter.get_params(ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    factors = [1.0 if factor is None else factor for factor in factors]
    return factors, [kind for kind in order.tolist() if kind <= SATURATION]


def on_host(pixels: Tensor, factors: list[float], order: list[int]) -> Tensor:
    """Jitter one view, (3, S, S) uint8, bit for bit as torchvision, which rounds to bytes after each operation."""
    x = pixels.float()
    for kind in order:
        factor = factors[kind]
        if factor == 1:
            continue
        if kind == BRIGHTNESS:
            x.mul_(factor)
        else:
            degenerate = _luma(x)  # (S, S)
            if kind == CONTRAST:  # a float64 sum of integers is exact for any number of threads
                degenerate = int(degenerate.mean(dtype=torch.float64) + 0.5)
            x.sub_(degenerate).mul_(factor).add_(degenerate)
        if factor > 1:  # with a factor below 1, the result is between x and d
            x.clamp_(0, 255)
        x.floor_()
    return torch.from_numpy(x.numpy().astype("uint8"))  # 4 times faster than torch's conversion


def _luma(x: Tensor) -> Tensor:
    """Return the luma of a (3, S, S) image, (S, S), rounded to integers."""
    red, green, blue = x
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).add_(0.5).floor_()


def apply_colour_affine(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Jitter (N, 3, S, S) images in [0, 1] and clip once at the end. factors, order: see `PendingJitter`."""
    matrix, offset = colour_affine_maps(x.mean((2, 3)), factors, order)
    return torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).clamp_(0, 1).view_as(x)


def colour_affine_maps(mean: Tensor, factors: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Express the jitter of each image as x -> matrix @ x + offset per pixel, without rounding and clipping.

    Contrast needs the mean luma of the image after the previous operations. These operations are affine, so the mean
    luma follows from the mean of the original image.

    Args:
        mean: (N, 3) mean colours of the original images.
        factors, order: See `PendingJitter`.

    Returns:
        matrix (N, 3, 3) and offset (N, 3).
    """
    luma = cached_constant(mean.device, *LUMA)
    matrix, offset = torch.eye(3, device=mean.device).expand(len(mean), 3, 3), torch.zeros_like(mean)
    for kind, factor in zip(order.T, factors.gather(1, order).T, strict=True):  # (N,) each
        row, level = luma @ matrix, offset @ luma  # (N, 3), (N,): the current luma is row @ x + level
        mean_luma = (row * mean).sum(1) + level  # (N,)
        luma_share = (1 - factor) * (kind == SATURATION)  # (N,)
        constant = luma_share * level + (1 - factor) * (kind == CONTRAST) * mean_luma
        matrix = factor[:, None, None] * matrix + (luma_share[:, None] * row)[:, None, :]
        offset = factor[:, None] * offset + constant[:, None]
    return matrix, offset
