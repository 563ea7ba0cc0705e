"""Augmentations of a whole batch on the device: pure functions from (N, 3, H, W) in [0, 1] to (N, 3, S, S).

The random choices for an image are a row of uniform random numbers in [0, 1), so the same row gives the same view.
Unlike Pillow, these functions do not round to bytes, and clip the jitter only before hue and at the end.
"""

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from moco.views import jitter
from moco.views.geometry import Crop, Shift
from moco.views.jitter import on

TRIES = 10  # of RandomResizedCrop, before it uses the centre crop
ORDERS = tuple(itertools.permutations(range(4)))  # brightness, contrast, saturation, hue
HUE = 3


def crop_boxes(crop: Crop, height: int, width: int, uniform: Tensor) -> Tensor:
    """Sample the boxes of RandomResizedCrop: (N, 4) top, left, height, width in whole pixels.

    As in torchvision's `get_params`, the first try that fits is used, and otherwise the largest centred box with an
    allowed aspect ratio. uniform: (N, 2 TRIES + 2), the area and the ratio of each try, then the position.
    """
    (least, most), (flat, tall) = crop.scale, map(math.log, crop.ratio)
    area = height * width * (least + (most - least) * uniform[:, :TRIES])  # (N, TRIES)
    ratio = (flat + (tall - flat) * uniform[:, TRIES : 2 * TRIES]).exp()
    wide, high = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)  # (N, 1), 0 if none fits
    wide, high = wide.gather(1, first)[:, 0], high.gather(1, first)[:, 0]  # (N,)
    room = torch.stack([height - high, width - wide], dim=1) + 1
    place = (uniform[:, 2 * TRIES :] * room).floor()  # (N, 2) top, left
    boxes = torch.cat([place, high[:, None], wide[:, None]], dim=1)
    return torch.where(fits.any(1, keepdim=True), boxes, on(boxes.device, *_middle(crop, height, width)))


def _middle(crop: Crop, height: int, width: int) -> tuple[int, int, int, int]:
    flat, tall = crop.ratio
    wide, high = width, height
    if width / height < flat:
        high = round(width / flat)
    elif width / height > tall:
        wide = round(height * tall)
    return (height - high) // 2, (width - wide) // 2, high, wide


def resize_weights(start: Tensor, length: Tensor, size: int, whole: int) -> Tensor:
    """Return the weights (N, size, whole) that resize pixels start .. start + length - 1 of `whole` to `size` pixels.

    The filter is Pillow's bilinear filter, which averages when it shrinks. start, length: (N,).
    """
    at = (
        torch.arange(whole, device=start.device, dtype=start.dtype) - start[:, None] + 0.5
    )  # (N, whole), position in the box
    inside = (at > 0) & (at < length[:, None])
    scale = length / size  # (N,)
    centre = (torch.arange(size, device=start.device, dtype=start.dtype) + 0.5) * scale[:, None]  # (N, size)
    distance = (at[:, None] - centre[:, :, None]).abs() / scale.clamp(min=1)[:, None, None]  # (N, size, whole)
    weights = (1 - distance).clamp_(min=0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop each image to its box, resize it to (size, size), and mirror it where flip (N,) is true."""
    height, width = images.shape[2:]
    rows = resize_weights(boxes[:, 0], boxes[:, 2], size, height)  # (N, S, H)
    columns = resize_weights(boxes[:, 1], boxes[:, 3], size, width)  # (N, S, W)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return _both_sides(rows, images, columns)


def _both_sides(rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
    """Compute rows (N, S, H) @ images (N, 3, H, W) @ columns.T (N, W, S) for each channel: (N, 3, S, S)."""
    count, channels, height, width = images.shape
    lines = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2))  # (N, 3H, S)
    lines = lines.view(count, channels, height, -1).transpose(1, 2).flatten(2)  # (N, H, 3S)
    return torch.bmm(rows, lines).unflatten(2, (channels, -1)).transpose(1, 2).contiguous()


def shifted(images: Tensor, shift: Shift, uniform: Tensor) -> Tensor:
    """Apply torchvision's RandomAffine to square images, with a black background.

    uniform: (N, 4) random numbers for the angle, the shift to the right, the shift down and the scale.
    """
    size, even = images.shape[3], 2 * uniform - 1
    angle = math.pi / 180 * shift.degrees * even[:, 0]
    move = (shift.translate * size * even[:, 1:3]).round() * 2 / size  # whole pixels, in a grid of -1 to 1
    scale = shift.scale[0] + (shift.scale[1] - shift.scale[0]) * uniform[:, 3]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # (N, 2, 2) from view to image
    theta = torch.cat([back, -back @ move[:, :, None]], dim=2)  # (N, 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def jittered(x: Tensor, factors: Tensor, order: Tensor, hue: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue, in each image's own order.

    Args:
        factors: (N, 4). A factor of 1 (for hue 0) changes nothing.
        order: (N, 4) int64, the operations from first to last.
        hue: Whether the hue of any image may change.
    """
    last = (order == HUE).to(torch.int8).argsort(dim=1, stable=True)  # hue last, the others in their order
    of_three = order.gather(1, last)[:, :HUE]  # (N, 3)
    if not hue:
        return jitter.apply_affine(x, factors[:, :HUE], of_three)
    place = order.argsort(1)  # (N, 4) position of each operation
    before = place[:, :HUE] < place[:, HUE:]  # (N, 3)
    x = jitter.apply_affine(x, torch.where(before, factors[:, :HUE], 1.0), of_three)
    x = turned_hue(x, factors[:, HUE])
    return jitter.apply_affine(x, torch.where(before, 1.0, factors[:, :HUE]), of_three)


def turned_hue(x: Tensor, by: Tensor) -> Tensor:
    """Shift the hue (HSV) of (N, 3, S, S) images as torchvision's `adjust_hue`. by: (N,) in turns, -0.5 to 0.5."""
    largest, smallest = x.amax(1), x.amin(1)  # (N, S, S)
    spread = largest - smallest
    red, green, blue = x.unbind(1)
    safe = spread.clamp(min=1e-12)
    hue = torch.where(largest == red, (green - blue) / safe, 4 + (red - green) / safe)
    hue = torch.where((largest == green) & (largest != red), 2 + (blue - red) / safe, hue)
    hue = hue + 6 * by[:, None, None]
    # For each channel: distance of the hue from the hue at which the channel is smallest, in sixths of a turn.
    shift = on(x.device, 5.0, 3.0, 1.0)[:, None, None]
    k = (hue[:, None] + shift).remainder(6)  # (N, 3, S, S)
    return largest[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def grey(x: Tensor, chosen: Tensor) -> Tensor:
    """Convert images to grey (luma in all three channels) where chosen (N,) is true."""
    luma = torch.einsum("nchw,c->nhw", x, on(x.device, *jitter.LUMA))[:, None]
    return torch.where(chosen[:, None, None, None], luma, x)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma (N,) in pixels (0: no blur). Border pixels are repeated."""
    size, reach = x.shape[3], 6
    offset = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, 2 reach + 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    row = torch.arange(size, device=x.device)
    reached = (row[:, None] + offset.long()).clamp(0, size - 1)  # (S, 2 reach + 1) pixels
    chosen = (reached[:, :, None] == row).to(x.dtype)  # (S, 2 reach + 1, S)
    weights = torch.einsum("nk,skw->nsw", kernel, chosen)  # (N, S, S)
    return _both_sides(weights, x, weights)


def cut_out(x: Tensor, share: float, centre: Tensor, fill: Tensor) -> Tensor:
    """Fill a square in each image, as `colour.cut_out`. centre: (N, 2) random numbers in [0, 1). fill: (3,)."""
    size = x.shape[3]
    half, middle = round(share * size) // 2, (centre * size).floor()  # (N, 2)
    at = torch.arange(size, device=x.device)
    inside = (at >= middle[:, :, None] - half) & (at < middle[:, :, None] + half)  # (N, 2, S)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (N, S, S)
    return torch.where(hole[:, None], fill[:, None, None], x)
