"""A View as a function of a batch on the device, with its random numbers as an argument."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from moco.views import on_device
from moco.views.colour import BLUR, Colours
from moco.views.geometry import Affine, PaddedCrop, ResizedCrop
from moco.views.jitter import cached_constant
from moco.views.on_device import ORDERS, TRIES

# Columns of the (N, NUM_RANDOM) uniform random numbers of N views.
COL_CROP = slice(0, 2 * TRIES + 2)  # ResizedCrop; Affine uses the first four of these columns
COL_FLIP, COL_GREY, COL_BLUR, COL_BLUR_SIGMA, COL_JITTER, COL_JITTER_ORDER = range(COL_CROP.stop, COL_CROP.stop + 6)
COL_JITTER_FACTORS = slice(COL_JITTER_ORDER + 1, COL_JITTER_ORDER + 5)
COL_CUTOUT = slice(COL_JITTER_FACTORS.stop, COL_JITTER_FACTORS.stop + 2)
NUM_RANDOM = COL_CUTOUT.stop


class BatchViews:
    """Random views of images on the device: (N, 3, H, W) uint8 to (N, 3, size, size) float32 in [0, 1].

    Args:
        geometry, colour, cutout: As in View.
        fill: Mean colour in [0, 1], with which cutout fills its square.
    """

    def __init__(self, geometry, colour, cutout: float, size: int, fill: Sequence[float], device: torch.device):
        self.geometry, self.colour, self.cutout, self.size = geometry, colour, cutout, size
        self.fill, self.orders = cached_constant(device, *fill), torch.tensor(ORDERS, device=device)

    @staticmethod
    def supports(geometry, colour) -> bool:
        """Return whether a View with this geometry and colour is supported."""
        known_geometry = isinstance(geometry, ResizedCrop | Affine | PaddedCrop)
        return known_geometry and (colour is None or isinstance(colour, Colours))

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Compute one view per image. uniform: (N, NUM_RANDOM) random numbers in [0, 1), one row per view."""
        x = self._apply_geometry(images.float().div_(255), uniform)
        x = x if self.colour is None else self._apply_colour(x, uniform)
        return on_device.cut_out(x, self.cutout, uniform[:, COL_CUTOUT], self.fill) if self.cutout else x

    def _apply_geometry(self, x: Tensor, uniform: Tensor) -> Tensor:
        never, flip = torch.zeros(len(x), dtype=torch.bool, device=x.device), uniform[:, COL_FLIP] < 0.5
        if isinstance(self.geometry, ResizedCrop):
            boxes = on_device.crop_boxes(self.geometry, *x.shape[2:], uniform[:, COL_CROP])
            return on_device.crop_resize(x, boxes, flip, self.size)
        whole = cached_constant(x.device, 0, 0, *x.shape[2:]).expand(len(x), 4)
        x = on_device.crop_resize(x, whole, never, self.size)
        if isinstance(self.geometry, Affine):
            return on_device.apply_affine(x, self.geometry, uniform[:, :4])
        border = self.geometry.border(self.size)
        corners = (uniform[:, :2] * (2 * border + 1)).floor()  # (N, 2)
        boxes = torch.cat([corners, torch.full_like(corners, self.size)], dim=1)
        return on_device.crop_resize(pad(x, (border,) * 4), boxes, flip, self.size)

    def _apply_colour(self, x: Tensor, uniform: Tensor) -> Tensor:
        colour = self.colour
        *strengths, hue = colour.jitter
        low = cached_constant(x.device, *(max(0.0, 1 - strength) for strength in strengths), -hue)
        high = cached_constant(x.device, *(1 + strength for strength in strengths), hue)
        factors = low + (high - low) * uniform[:, COL_JITTER_FACTORS]  # (N, 4)
        jittered = (uniform[:, COL_JITTER] < colour.jitter_p)[:, None]  # (N, 1)
        factors = torch.where(jittered, factors, cached_constant(x.device, 1.0, 1.0, 1.0, 0.0))
        orders = self.orders[(uniform[:, COL_JITTER_ORDER] * len(ORDERS)).long()]  # (N, 4)
        x = on_device.apply_jitter(x, factors, orders, hue > 0)
        x = on_device.to_grey(x, uniform[:, COL_GREY] < colour.grey_p) if colour.grey_p else x
        if not colour.blur_p:
            return x
        sigma = BLUR[0] + (BLUR[1] - BLUR[0]) * uniform[:, COL_BLUR_SIGMA]
        return on_device.blur(x, torch.where(uniform[:, COL_BLUR] < colour.blur_p, sigma, 0.0))
