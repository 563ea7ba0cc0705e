"""What a view consists of: the class `View`, and the parts that the rows of VIEWS combine."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from moco.views.colour import CifarAutoAugment as CifarAutoAugment
from moco.views.colour import Colours
from moco.views.colour import RandAugment as RandAugment
from moco.views.geometry import Affine, PaddedCrop, ResizedCrop
from moco.views.jitter import PendingJitter


@dataclass(frozen=True)
class View:
    """Transforms from an RGB image of any size to the network's input.

    Attributes:
        geometry: training geometry, one of these classes or an object with the same methods: `prepare` runs once per
            image, and `draw` then runs for each view.
        colour: colour transform of training, called with (pixels, device_aug); returns pixels or a PendingJitter.
            None: no colour transform.
        eval_transform: called with the size; returns the evaluation transform: resize and centre crop, or only resize.
        cutout: side of the square cut out in training, as a share of the view's side; 0: no cutout.
    """

    geometry: ResizedCrop | PaddedCrop | Affine
    colour: Callable[[Tensor, bool], Tensor | PendingJitter] | None
    eval_transform: Callable[[int], Callable[[Image.Image], Image.Image]]
    cutout: float = 0.0


def centre(size: int) -> T.Compose:
    """Return Resize(256) and CenterCrop(224), scaled to this size."""
    return T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size)])


def whole(size: int) -> T.Resize:
    """Resize the whole image to a square, without keeping its aspect ratio, so that all images have one shape."""
    return T.Resize((size, size))


PHOTO = Colours((0.4, 0.4, 0.4, 0.0))
SIMCLR = Colours((0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey_p=0.2)
SIMCLR_BLUR = replace(SIMCLR, blur_p=0.5)
