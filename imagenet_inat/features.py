"""The features of a data set's splits by a frozen encoder, for heads that are fitted to them."""

from pathlib import Path

import PIL
import torch
import torchvision
from torch import nn

from imagenet_inat.loaders import DeviceBatches, eval_loader
from imagenet_inat.options import Data
from imagenet_inat.whereabouts import SPLITS
from utils.distributed import say
from utils.measure.extraction import extract_features
from utils.measure.kept_features import Features, digest, kept_features
from utils.run.launch import Place
from utils.run.speed import Speed

BATCH = 256  # images at a time
MANY = 5000  # images from which on a bar is shown


def features_of(
    data: Data, encoder: nn.Module, checkpoint: Path, views: int, seed: int, place: Place, speed: Speed
) -> dict[str, Features]:
    """Train, val and test, computed once and kept in features_<checkpoint>/ beside the checkpoint.

    Args:
        encoder: (N, 3, S, S) -> (N, d), on the device. checkpoint: whose it is.
        views: random views of each training image, one after the other; 0: its evaluation view, as of val and test.
        seed: of the random views.

    Raises:
        InputError: a list or an image that cannot be used, or features that are not finite.
    """
    folder = checkpoint.parent / f"features_{checkpoint.name.split('.')[0]}"
    about = {"checkpoint": digest(checkpoint), "device": place.device.type, "amp": str(speed.dtype)}
    about |= {"versions": [torch.__version__, torchvision.__version__, PIL.__version__]}
    found = {}
    for split in SPLITS:
        if split == "test" and data.val_is_test:
            found[split] = found["val"]
            continue
        random_views = views if split == "train" else 0
        images = data.open_decoded(split, data.train_view() if random_views else data.eval_view(), seed)
        spec, how = data.spec, [data.crop_scale, data.spec.jitter, data.device_aug] if random_views else []
        # A list of the same names under another root may be of other images.
        its = about | {
            "list": images.digest,
            "root": str(images.root.resolve()),
            "transform": [spec.view, data.image_size, *how],
        }
        its |= {"statistics": [data.spec.mean, data.spec.std], "views": [random_views, seed if random_views else None]}
        path = folder / f"{split}{f'_{views}_views' if random_views else ''}.safetensors"
        found[split] = kept_features(
            path, its, lambda images=images, n=random_views: _extract(data, images, encoder, n, place, speed)
        )
        if empty := int((torch.linalg.vector_norm(found[split].features, dim=1) == 0).sum()):
            say(f"note: {split}: {empty} images have features of length 0, which no head can tell apart")
    if missing := data.spec.num_classes - len(found["val"].labels.unique()):
        say(f"note: {missing} of {data.spec.num_classes} classes have no validation image: the others choose")
    return found


class InAutocast(nn.Module):
    """A network in the half precision of --amp, without gradients."""

    def __init__(self, network: nn.Module, speed: Speed):
        super().__init__()
        self.network, self.speed = network, speed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.speed.autocast():
            return self.network(x)


def _extract(data: Data, images, encoder: nn.Module, views: int, place: Place, speed: Speed) -> Features:
    """One pass in the evaluation view, or one for each random view."""
    network, normalise, name = InAutocast(encoder, speed), data.normalise(place.device), images.list_file.name
    parts = []
    for view in range(max(views, 1)):
        if views:  # the draws are numbered: a view is the same in any order and by any number of workers
            order = [(index, view * len(images) + index) for index in range(len(images))]
            loader = DeviceBatches(images, normalise, place.workers, batch_size=BATCH, sampler=order)
        else:
            loader = eval_loader(images, BATCH, normalise, place.workers)
        say(f"features: {name}, {f'view {view + 1} of {views}' if views else 'evaluation view'}, {len(images)} images")
        bar = name if len(images) > MANY else None
        found = extract_features(network, loader, where=name, finish=lambda features: features, progress=bar)
        parts.append(Features(*(tensor.cpu() for tensor in found)))
    if len(parts) == 1:
        return parts[0]
    return Features(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
