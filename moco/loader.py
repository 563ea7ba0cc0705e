"""Views of an image: the augmentations of both stages, from a data set's registry row."""

from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from imagenet_inat.datasets import DatasetSpec

JITTER = T.ColorJitter(0.4, 0.4, 0.4, 0)


class TwoCropsTransform:
    """Two random views of one decoded image: [query view, key view]."""

    def __init__(self, view: T.Compose):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.view(image), self.view(image)]


def _photo_view(size: int, jitter: bool) -> list:
    crop = [T.RandomResizedCrop(size), T.RandomHorizontalFlip()]
    return [*crop, JITTER] if jitter else crop


def _digit_view(size: int, jitter: bool) -> list:
    """Small rotation, shift, scale and contrast; a mirrored digit is another sign, so no flip."""
    bilinear = T.InterpolationMode.BILINEAR
    affine = T.RandomAffine(12, translate=(0.1, 0.1), scale=(0.85, 1.15), interpolation=bilinear)
    resize = T.Resize(size)
    return [resize, affine, T.ColorJitter(contrast=0.4)] if jitter else [resize, affine]


RANDOM_VIEWS = {"photo": _photo_view, "thumbnail": _photo_view, "digit": _digit_view}


def _to_normalised_tensor(spec: DatasetSpec) -> list:
    return [T.ToTensor(), T.Normalize(spec.mean, spec.std)]


def train_transform(spec: DatasetSpec, image_size: int) -> T.Compose:
    """One random view: PIL image to a (3, image_size, image_size) float32 tensor.

    Photographs: the release's RandomResizedCrop, flip and ColorJitter(0.4, 0.4, 0.4, 0).
    """
    view = RANDOM_VIEWS[spec.view](image_size, spec.jitter)
    return T.Compose(view + _to_normalised_tensor(spec))


def eval_transform(spec: DatasetSpec, image_size: int) -> T.Compose:
    """The one view of evaluation: Resize(256) and CenterCrop(224), or in that proportion."""
    if spec.view == "photo":
        frame = [T.Resize(round(image_size * 256 / 224)), T.CenterCrop(image_size)]
    else:
        frame = [T.Resize(image_size)]  # whole already
    return T.Compose(frame + _to_normalised_tensor(spec))
