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
from moco.views.geometry import Affine, ResizedCrop
from moco.views.jitter import cached_constant

TRIES = 10  # of RandomResizedCrop, before it uses the centre crop
ORDERS = tuple(itertools.permutations(range(4)))  # brightness, contrast, saturation, hue
HUE = 3


def crop_boxes(crop: ResizedCrop, height: int, width: int, uniform: Tensor) -> Tensor:
    """Sample the boxes of RandomResizedCrop: (N, 4) top, left, height, width in whole pixels.

    As in torchvision's `get_params`, the first try that fits is used, and otherwise the largest centred box with an
    allowed aspect ratio. uniform: (N, 2 TRIES + 2), the area and the ratio of each try, then the position.
    """
    (scale_min, scale_max), (log_ratio_min, log_ratio_max) = crop.scale, map(math.log, crop.ratio)
    area = height * width * (scale_min + (scale_max - scale_min) * uniform[:, :TRIES])  # (N, TRIES)
    ratio = (log_ratio_min + (log_ratio_max - log_ratio_min) * uniform[:, TRIES : 2 * TRIES]).exp()  # width / height
    box_width, box_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)  # (N, 1), 0 if none fits
    box_width, box_height = box_width.gather(1, first)[:, 0], box_height.gather(1, first)[:, 0]  # (N,)
    positions = torch.stack([height - box_height, width - box_width], dim=1) + 1  # (N, 2) number of positions
    corner = (uniform[:, 2 * TRIES :] * positions).floor()  # (N, 2) top, left
    boxes = torch.cat([corner, box_height[:, None], box_width[:, None]], dim=1)
    centre_box = cached_constant(boxes.device, *_centre_box(crop, height, width))
    return torch.where(fits.any(1, keepdim=True), boxes, centre_box)


def _centre_box(crop: ResizedCrop, height: int, width: int) -> tuple[int, int, int, int]:
    ratio_min, ratio_max = crop.ratio
    box_width, box_height = width, height
    if width / height < ratio_min:
        box_height = round(width / ratio_min)
    elif width / height > ratio_max:
        box_width = round(height * ratio_max)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize_weights(start: Tensor, length: Tensor, size: int, whole: int) -> Tensor:
    """Return the weights (N, size, whole) that resize pixels start .. start + length - 1 of `whole` to `size` pixels.

    The filter is Pillow's bilinear filter, which averages when it shrinks. start, length: (N,).
    """
    pixels = torch.arange(whole, device=start.device, dtype=start.dtype)
    position = pixels - start[:, None] + 0.5  # (N, whole), of each pixel in the box
    inside = (position > 0) & (position < length[:, None])
    scale = length / size  # (N,)
    centre = (torch.arange(size, device=start.device, dtype=start.dtype) + 0.5) * scale[:, None]  # (N, size)
    distance = (position[:, None] - centre[:, :, None]).abs() / scale.clamp(min=1)[:, None, None]  # (N, size, whole)
    weights = (1 - distance).clamp_(min=0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop each image to its box, resize it to (size, size), and mirror it where flip (N,) is true."""
    height, width = images.shape[2:]
    rows = resize_weights(boxes[:, 0], boxes[:, 2], size, height)  # (N, S, H)
    columns = resize_weights(boxes[:, 1], boxes[:, 3], size, width)  # (N, S, W)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return _resample_separable(rows, images, columns)


def _resample_separable(rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
    """Compute rows (N, S, H) @ images (N, 3, H, W) @ columns.T (N, W, S) for each channel: (N, 3, S, S)."""
    count, channels, height, width = images.shape
    lines = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2))  # (N, 3H, S)
    lines = lines.view(count, channels, height, -1).transpose(1, 2).flatten(2)  # (N, H, 3S)
    return torch.bmm(rows, lines).unflatten(2, (channels, -1)).transpose(1, 2).contiguous()


def apply_affine(images: Tensor, params: Affine, uniform: Tensor) -> Tensor:
    """Apply torchvision's RandomAffine to square images, with a black background, as Pillow does it.

    uniform: (N, 4) random numbers for the angle, the translation to the right and down, and the scale.
    """
    size, signed = images.shape[3], 2 * uniform - 1  # uniform in [-1, 1)
    angle = math.pi / 180 * params.degrees * signed[:, 0]
    move = (params.translate * size * signed[:, 1:3]).round() * 2 / size  # whole pixels, in a grid of -1 to 1
    scale = params.scale[0] + (params.scale[1] - params.scale[0]) * uniform[:, 3]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # (N, 2, 2) from view to image
    theta = torch.cat([back, -back @ move[:, :, None]], dim=2)  # (N, 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    inside = ((grid >= -1) & (grid < 1)).all(3)[:, None]  # Pillow does not blend the image with the background
    return grid_sample(images, grid, padding_mode="border", align_corners=False) * inside


def apply_jitter(x: Tensor, factors: Tensor, order: Tensor, hue: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue, in each image's own order.

    Args:
        factors: (N, 4). A factor of 1 (for hue 0) changes nothing.
        order: (N, 4) int64, the operations from first to last.
        hue: Whether the hue of any image may change.
    """
    hue_last = (order == HUE).to(torch.int8).argsort(dim=1, stable=True)
    affine_order = order.gather(1, hue_last)[:, :HUE]  # (N, 3), without hue
    if not hue:
        return jitter.apply_colour_affine(x, factors[:, :HUE], affine_order)
    rank = order.argsort(1)  # (N, 4) position of each operation in the order
    before_hue = rank[:, :HUE] < rank[:, HUE:]  # (N, 3)
    x = jitter.apply_colour_affine(x, torch.where(before_hue, factors[:, :HUE], 1.0), affine_order)
    x = rotate_hue(x, factors[:, HUE])
    return jitter.apply_colour_affine(x, torch.where(before_hue, 1.0, factors[:, :HUE]), affine_order)


def rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue (HSV) of (N, 3, S, S) images as torchvision's `adjust_hue`. turns: (N,) from -0.5 to 0.5."""
    largest, smallest = x.amax(1), x.amin(1)  # (N, S, S)
    spread = largest - smallest
    red, green, blue = x.unbind(1)
    safe = spread.clamp(min=1e-12)
    hue = torch.where(largest == red, (green - blue) / safe, 4 + (red - green) / safe)
    hue = torch.where((largest == green) & (largest != red), 2 + (blue - red) / safe, hue)
    hue = hue + 6 * turns[:, None, None]
    # k: hue relative to each channel, in sixths of a turn. The channel falls from 0 to 1, is smallest from 1 to 3,
    # rises from 3 to 4, and is largest from 4 to 6.
    shift = cached_constant(x.device, 5.0, 3.0, 1.0)[:, None, None]
    k = (hue[:, None] + shift).remainder(6)  # (N, 3, S, S)
    return largest[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def to_grey(x: Tensor, mask: Tensor) -> Tensor:
    """Convert images to grey (luma in all three channels) where mask (N,) is true."""
    luma = torch.einsum("nchw,c->nhw", x, cached_constant(x.device, *jitter.LUMA))[:, None]
    return torch.where(mask[:, None, None, None], luma, x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma (N,) in pixels (0: no blur). Border pixels are repeated."""
    size, radius = x.shape[3], 6
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, 2 radius + 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    row = torch.arange(size, device=x.device)
    neighbours = (row[:, None] + offset.long()).clamp(0, size - 1)  # (S, 2 radius + 1) pixels
    one_hot = (neighbours[:, :, None] == row).to(x.dtype)  # (S, 2 radius + 1, S)
    weights = torch.einsum("nk,skw->nsw", kernel, one_hot)  # (N, S, S)
    return _resample_separable(weights, x, weights)


def cut_out(x: Tensor, share: float, centre: Tensor, fill: Tensor) -> Tensor:
    """Fill a square in each image, as `colour.cut_out`. centre: (N, 2) random numbers in [0, 1). fill: (3,)."""
    size = x.shape[3]
    half, centre_pixel = round(share * size) // 2, (centre * size).floor()  # (N, 2)
    pixels = torch.arange(size, device=x.device)
    inside = (pixels >= centre_pixel[:, :, None] - half) & (pixels < centre_pixel[:, :, None] + half)  # (N, 2, S)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (N, S, S)
    return torch.where(hole[:, None], fill[:, None, None], x)
