"""VIEWS: the values of --views. To add one, add a row.

The file does not import PyTorch, which takes seconds, because --help lists the views. Each row therefore builds its
view from the module moco.views.parts, p, when the view is used.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from moco.views.parts import View


class ViewRow(NamedTuple):
    """A row of VIEWS.

    Attributes:
        help: text for --help.
        build: returns the view; called with the module moco.views.parts.
    """

    help: str
    build: Callable[[ModuleType], "View"]


VIEWS = {
    "photo": ViewRow("crop (8 to 100 %), flip, colour jitter", lambda p: p.View(p.ResizedCrop(), p.PHOTO, p.centre)),
    "plain": ViewRow("as photo, without colour jitter", lambda p: p.View(p.ResizedCrop(), None, p.centre)),
    "thumbnail": ViewRow("as photo, for small images", lambda p: p.View(p.ResizedCrop(), p.PHOTO, p.whole)),
    "simclr": ViewRow(
        "crop (20 to 100 %), flip, jitter, grey, blur",
        lambda p: p.View(p.ResizedCrop((0.2, 1.0)), p.SIMCLR_BLUR, p.centre),
    ),
    "simaugment": ViewRow(
        "crop (8 to 100 %), flip, jitter, grey", lambda p: p.View(p.ResizedCrop(), p.SIMCLR, p.centre)
    ),
    "randaugment": ViewRow(
        "as photo, and RandAugment", lambda p: p.View(p.ResizedCrop(), p.RandAugment(p.PHOTO), p.centre)
    ),
    "cifar": ViewRow(
        "as simclr without blur, for small images", lambda p: p.View(p.ResizedCrop((0.2, 1.0)), p.SIMCLR, p.whole)
    ),
    "padded": ViewRow("padded crop, flip, for small images", lambda p: p.View(p.PaddedCrop(), None, p.whole)),
    "autoaugment": ViewRow(
        "padded crop, flip, AutoAugment, Cutout",
        lambda p: p.View(p.PaddedCrop(), p.CifarAutoAugment(), p.whole, cutout=0.5),
    ),
    "grey": ViewRow(
        "crop (40 to 100 %), flip, for small grey images",
        lambda p: p.View(p.ResizedCrop((0.4, 1.0)), None, p.whole),
    ),
    "digit": ViewRow(
        "rotation, shift, scaling, contrast, no flip",
        lambda p: p.View(p.Affine(), p.Colours((0.0, 0.4, 0.0, 0.0)), p.whole),
    ),
}
