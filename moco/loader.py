"""Image views by name (--views): uint8 in the loader processes, normalised float32 on the device."""

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from moco.views import jitter, parts
from moco.views.colour import Colours, cut_out
from moco.views.geometry import ResizedCrop, to_pixels
from moco.views.jitter import PendingJitter
from moco.views.parts import View
from moco.views.rows import VIEWS
from utils.errors import InputError


def view_named(name: str, crop_scale: Sequence[float] | None = None) -> View:
    """Return a view of VIEWS, with the range of crop areas replaced if crop_scale is given.

    Raises:
        InputError: If the view is unknown, the range is invalid, or the view does not use random crops of this kind.
    """
    if name not in VIEWS:
        raise InputError(f'view "{name}": expected one of {", ".join(VIEWS)} (defined in moco/views/rows.py)')
    view = VIEWS[name].build(parts)
    if crop_scale is None:
        return view
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise InputError(f"--crop-scale {low:g} {high:g}: expected 0 < LO <= HI <= 1 (shares of the image area)")
    if not isinstance(view.geometry, ResizedCrop):
        named = ", ".join(other for other, row in VIEWS.items() if isinstance(row.build(parts).geometry, ResizedCrop))
        raise InputError(f"--crop-scale: not supported with --views {name}; use one of {named}")
    return dataclasses.replace(view, geometry=dataclasses.replace(view.geometry, scale=(low, high)))


def without_jitter(view: View) -> View:
    """Return the view without its colour jitter, grey and blur. AutoAugment and RandAugment stay as they are."""
    return dataclasses.replace(view, colour=None) if isinstance(view.colour, Colours) else view


class RandomView:
    """Transform that returns one random view of a decoded image, as defined by a View. fill: see `cut_out`."""

    def __init__(self, view: View, size: int, device_aug: bool, fill: Sequence[float]):
        self.view, self.size, self.device_aug, self.fill = view, size, device_aug, fill

    def __call__(self, image: Image.Image) -> Tensor | PendingJitter:
        """Return (3, S, S) uint8, or a PendingJitter."""
        return self.draw(self.prepare(image))

    def prepare(self, image: Image.Image) -> Image.Image | Tensor:
        """Return what `draw` accepts; both views of an image can use it."""
        return self.view.geometry.prepare(image, self.size, self.device_aug)

    def draw(self, prepared: Image.Image | Tensor) -> Tensor | PendingJitter:
        pixels = self.view.geometry.draw(prepared, self.size)
        pixels = self.view.colour(pixels, self.device_aug) if self.view.colour else pixels
        return cut_out(pixels, self.view.cutout, self.fill) if self.view.cutout else pixels


class TwoCropsTransform:
    """Transform that returns two (or `count`) random views of a decoded image: [query view, key view].

    first: another view for the first of them.
    """

    def __init__(self, view: RandomView, count: int = 2, first: RandomView | None = None):
        self.view, self.count, self.first = view, count, first

    def __call__(self, image: Image.Image) -> list[Tensor | PendingJitter]:
        views = [self.first(image)] if self.first else []
        prepared = self.view.prepare(image)
        return [*views, *(self.view.draw(prepared) for _ in range(self.count - len(views)))]


def train_transform(
    view: str,
    image_size: int,
    device_aug: bool = False,
    colour: bool = True,
    crop_scale: Sequence[float] | None = None,
    fill: Sequence[float] = (0.5, 0.5, 0.5),
) -> RandomView:
    """Return the training transform: RGB image to (3, image_size, image_size) uint8, the input of `Normalise`.

    Args:
        colour: whether to apply colour jitter; False: see `without_jitter`.
        device_aug: use the same random draws, but a faster resize, and colour jitter on the device; see --help.
        crop_scale: see `view_named`. fill: mean colour, used by views with cutout.
    """
    row = view_named(view, crop_scale)
    return RandomView(row if colour else without_jitter(row), image_size, device_aug, fill)


def eval_transform(view: str, image_size: int) -> T.Compose:
    """Return the evaluation transform (deterministic), with uint8 output as in training."""
    return T.Compose([view_named(view).eval_transform(image_size), to_pixels])


def describe_eval_view(view: str, image_size: int) -> dict[str, object]:
    """Describe the evaluation view for other programs.

    Returns:
        {"resize": …, "crop": …, "interpolation": …}. resize: the length of the shorter side, or [height, width] of the
        whole image. crop: [height, width] of the centre that is kept, or None.
    """
    transform = view_named(view).eval_transform(image_size)
    steps = transform.transforms if isinstance(transform, T.Compose) else [transform]
    (resize,) = (step for step in steps if isinstance(step, T.Resize))
    crop = next((list(step.size) for step in steps if isinstance(step, T.CenterCrop)), None)
    whole = resize.size if isinstance(resize.size, int) else list(resize.size)
    return {"resize": whole, "crop": crop, "interpolation": resize.interpolation.value}


class Normalise:
    """Conversion of loader batches to the model's input: uint8 is sent to the device and normalised there.

    Colour jitter on the device is one matrix product, whose result is clipped and not rounded. `jitter.on_host` clips
    and rounds down after each of the three steps. On photographs at 224 px, the two differ by 1.6/255 on average,
    mostly because of the rounding, and by up to 50/255 where the host clips between steps.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.device, self.statistics = device, {"mean": list(mean), "std": list(std)}
        self.mean, self.std = torch.tensor([mean, std], device=device)[:, :, None, None]  # (3, 1, 1) each

    def __call__(self, view: Tensor | PendingJitter) -> Tensor:
        """Convert (N, 3, S, S) uint8, or a PendingJitter, to normalised float32 on the device. Jitter is applied."""
        tensors = view if isinstance(view, PendingJitter) else (view,)
        pixels, *jitter_args = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        x = pixels.float().div_(255)
        return self.normalise(jitter.apply_colour_affine(x, *jitter_args) if jitter_args else x)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise (N, 3, S, S) values from 0 to 1 in place, on the device."""
        return x.sub_(self.mean).div_(self.std)
