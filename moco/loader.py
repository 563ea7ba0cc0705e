"""Views of an image, a row of VIEWS each: bytes in the loader's workers, the model's input on the device."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from moco.views import jitter
from moco.views.colour import AutoAugmented, Colours, cut_out
from moco.views.geometry import Crop, PaddedCrop, Shift, to_pixels
from moco.views.jitter import Jittered
from utils.errors import InputError


@dataclass(frozen=True)
class View:
    """How an RGB image becomes the network's input, of any size.

    geometry: of training, made from (size, device_aug): its `prepare` is done once for both views of an
        image, its `draw` on what that gives, for each: (3, size, size) uint8.
    colour: what training does to such pixels, given device_aug: the same again, or Jittered; None: nothing.
    frame: of evaluation, made from the size: the square of an image that is looked at.
    cutout: the side of the square that training cuts out, as a share of the view's; 0: none.
    help: for --help.
    """

    geometry: Callable
    colour: Callable[[Tensor, bool], Tensor | Jittered] | None
    frame: Callable[[int], Callable[[Image.Image], Image.Image]]
    cutout: float = 0.0
    help: str = ""


def _centre(size: int) -> T.Compose:
    """Resize(256) and CenterCrop(224), or in that proportion."""
    return T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size)])


def _whole(size: int) -> T.Resize:
    """All of the image as a square: what is not square is squeezed, so that a batch has one shape."""
    return T.Resize((size, size))


PHOTO = Colours((0.4, 0.4, 0.4, 0.0))
SIMCLR = Colours((0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey_p=0.2)
VIEWS = {
    "photo": View(Crop(), PHOTO, _centre, help="crop (8 to 100 %), flip, colour jitter"),
    "thumbnail": View(Crop(), PHOTO, _whole, help="as photo, for small images"),
    "simclr": View(
        Crop((0.2, 1.0)),
        dataclasses.replace(SIMCLR, blur_p=0.5),
        _centre,
        help="crop (20 to 100 %), flip, jitter, grey, blur",
    ),
    "cifar": View(Crop((0.2, 1.0)), SIMCLR, _whole, help="as simclr without blur, for small images"),
    "padded": View(PaddedCrop(), None, _whole, help="padded crop, flip, for small images"),
    "autoaugment": View(
        PaddedCrop(),
        AutoAugmented(),
        _whole,
        cutout=0.5,
        help="padded crop, flip, AutoAugment, Cutout",
    ),
    "grey": View(Crop((0.4, 1.0)), None, _whole, help="crop (40 to 100 %), flip, for small grey images"),
    "digit": View(Shift(), Colours((0.0, 0.4, 0.0, 0.0)), _whole, help="rotation, shift, scaling, contrast, no flip"),
}


def view_named(name: str, crop_scale: Sequence[float] | None = None) -> View:
    """The row of VIEWS, with crops of another scale if one is given.

    Raises:
        InputError: no such row; a scale that is none, or a view that crops otherwise.
    """
    if name not in VIEWS:
        raise InputError(f'view "{name}": expected one of {", ".join(VIEWS)}, the rows of VIEWS in moco/loader.py')
    view = VIEWS[name]
    if crop_scale is None:
        return view
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise InputError(f"--crop-scale {low:g} {high:g}: expected 0 < LO <= HI <= 1, shares of the image")
    if not isinstance(view.geometry, Crop):
        named = ", ".join(other for other, row in VIEWS.items() if isinstance(row.geometry, Crop))
        raise InputError(f"--crop-scale: --views {name} does not crop by a share of the image, {named} do")
    return dataclasses.replace(view, geometry=dataclasses.replace(view.geometry, scale=(low, high)))


class RandomView:
    """One random view of a decoded image, by the geometry, colour and cutout of a View. fill: see `cut_out`."""

    def __init__(self, view: View, size: int, device_aug: bool, fill: Sequence[float]):
        self.view, self.device_aug, self.fill = view, device_aug, fill
        self.geometry, self.colour = view.geometry(size, device_aug), view.colour

    def __call__(self, image: Image.Image) -> Tensor | Jittered:
        """(3, S, S) uint8, or with the factors beside it."""
        return self.draw(self.geometry.prepare(image))

    def draw(self, prepared: Image.Image | Tensor) -> Tensor | Jittered:
        pixels = self.geometry.draw(prepared)
        pixels = self.colour(pixels, self.device_aug) if self.colour else pixels
        return cut_out(pixels, self.view.cutout, self.fill) if self.view.cutout else pixels


class TwoCropsTransform:
    """Two random views of one decoded image: [query view, key view]."""

    def __init__(self, view: RandomView):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor | Jittered]:
        prepared = self.view.geometry.prepare(image)
        return [self.view.draw(prepared), self.view.draw(prepared)]


def train_transform(
    view: str,
    image_size: int,
    device_aug: bool = False,
    colour: bool = True,
    crop_scale: Sequence[float] | None = None,
    fill: Sequence[float] = (0.5, 0.5, 0.5),
) -> RandomView:
    """One random view: RGB image to (3, image_size, image_size) uint8, which `Normalise` takes on.

    colour: with the view's. device_aug: the same draws, resized faster and jittered on the device; see --help.
    crop_scale: see `view_named`. fill: the mean colour, for a view with cutout.
    """
    row = view_named(view, crop_scale)
    return RandomView(row if colour else dataclasses.replace(row, colour=None), image_size, device_aug, fill)


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
        return self.finish(jitter.apply_affine(x, *drawn) if drawn else x)

    def finish(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) of 0 to 1, on the device, normalised in place."""
        return x.sub_(self.mean).div_(self.std)
