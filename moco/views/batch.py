"""A View as a function of a batch on the device, with its random numbers as an argument."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from moco.views import on_device
from moco.views.colour import BLUR, Colours
from moco.views.geometry import Crop, PaddedCrop, Shift
from moco.views.jitter import on
from moco.views.on_device import ORDERS, TRIES

# Columns of the uniform random numbers of a view.
PLACE = slice(0, 2 * TRIES + 2)  # tries and position of the crop, or the four values of the shift
FLIP, GREY, BLURS, SIGMA, JITTERS, ORDER = range(PLACE.stop, PLACE.stop + 6)
FACTORS = slice(ORDER + 1, ORDER + 5)
HOLE = slice(FACTORS.stop, FACTORS.stop + 2)
NUMBERS = HOLE.stop


class BatchViews:
    """Random views of images on the device: (N, 3, H, W) uint8 to (N, 3, size, size) float32 in [0, 1].

    Args:
        geometry, colour, cutout: As in View.
        fill: Mean colour in [0, 1], with which cutout fills its square.
    """

    def __init__(self, geometry, colour, cutout: float, size: int, fill: Sequence[float], device: torch.device):
        self.geometry, self.colour, self.cutout, self.size = geometry, colour, cutout, size
        self.fill, self.orders = on(device, *fill), torch.tensor(ORDERS, device=device)

    @staticmethod
    def can(geometry, colour) -> bool:
        """Return whether a View with this geometry and colour is supported."""
        return isinstance(geometry, Crop | Shift | PaddedCrop) and (colour is None or isinstance(colour, Colours))

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Compute one view per image. uniform: (N, NUMBERS) random numbers in [0, 1), one row per view."""
        x = self._placed(images.float().div_(255), uniform)
        x = x if self.colour is None else self._coloured(x, uniform)
        return on_device.cut_out(x, self.cutout, uniform[:, HOLE], self.fill) if self.cutout else x

    def _placed(self, x: Tensor, uniform: Tensor) -> Tensor:
        never, flip = torch.zeros(len(x), dtype=torch.bool, device=x.device), uniform[:, FLIP] < 0.5
        if isinstance(self.geometry, Crop):
            boxes = on_device.crop_boxes(self.geometry, *x.shape[2:], uniform[:, PLACE])
            return on_device.crop_resize(x, boxes, flip, self.size)
        whole = on(x.device, 0, 0, *x.shape[2:]).expand(len(x), 4)
        x = on_device.crop_resize(x, whole, never, self.size)
        if isinstance(self.geometry, Shift):
            return on_device.shifted(x, self.geometry, uniform[:, :4])
        border = round(self.geometry.padding * self.size)
        places = (uniform[:, :2] * (2 * border + 1)).floor()  # (N, 2)
        boxes = torch.cat([places, torch.full_like(places, self.size)], dim=1)
        return on_device.crop_resize(pad(x, (border,) * 4), boxes, flip, self.size)

    def _coloured(self, x: Tensor, uniform: Tensor) -> Tensor:
        colour = self.colour
        *strengths, hue = colour.jitter
        low = on(x.device, *(max(0.0, 1 - strength) for strength in strengths), -hue)
        high = on(x.device, *(1 + strength for strength in strengths), hue)
        factors = low + (high - low) * uniform[:, FACTORS]  # (N, 4)
        kept = (uniform[:, JITTERS] < colour.jitter_p)[:, None]  # (N, 1)
        factors = torch.where(kept, factors, on(x.device, 1.0, 1.0, 1.0, 0.0))
        orders = self.orders[(uniform[:, ORDER] * len(ORDERS)).long()]  # (N, 4)
        x = on_device.jittered(x, factors, orders, hue > 0)
        x = on_device.grey(x, uniform[:, GREY] < colour.grey_p) if colour.grey_p else x
        if not colour.blur_p:
            return x
        sigma = BLUR[0] + (BLUR[1] - BLUR[0]) * uniform[:, SIGMA]
        return on_device.blurred(x, torch.where(uniform[:, BLURS] < colour.blur_p, sigma, 0.0))
