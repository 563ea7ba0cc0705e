"""Features of a data set's splits, computed with a frozen encoder, to which classifiers are fitted."""

from pathlib import Path

import PIL
import torch
import torchvision
from torch import nn

from imagenet_inat.loaders import DeviceBatches, eval_loader
from imagenet_inat.options import Data
from imagenet_inat.paths import SPLITS
from utils.distributed import say
from utils.measure.extraction import extract_features
from utils.measure.kept_features import Features, digest, kept_features
from utils.run.compute import ComputeConfig
from utils.run.launch import Place

BATCH = 256  # images per batch
MANY = 5000  # lists with more images show a progress bar


def features_of(
    data: Data, encoder: nn.Module, checkpoint: Path, views: int, seed: int, place: Place, compute: ComputeConfig
) -> dict[str, Features]:
    """Return the features of train, val and test, cached in features_<checkpoint>/ beside the checkpoint.

    Args:
        encoder: maps (N, 3, S, S) to (N, d), on the device. checkpoint: the file that holds the encoder.
        views: number of random views per training image; 0: the evaluation view, as for val and test.
        seed: random seed of the views.

    Raises:
        InputError: a list or an image cannot be used, or features are not finite.
    """
    folder = checkpoint.parent / f"features_{checkpoint.name.split('.')[0]}"
    about = {"checkpoint": digest(checkpoint), "device": place.device.type, "amp": str(compute.dtype)}
    about |= {"versions": [torch.__version__, torchvision.__version__, PIL.__version__]}
    found = {}
    for split in SPLITS:
        if split == "test" and data.val_is_test:
            found[split] = found["val"]
            continue
        random_views = views if split == "train" else 0
        images = data.open_decoded(split, data.train_view() if random_views else data.eval_view(), seed)
        spec, how = data.spec, [data.crop_scale, data.spec.jitter, data.device_aug] if random_views else []
        # The root is part of the key: the same list may refer to different images below another root.
        its = about | {
            "list": images.digest,
            "root": str(images.root.resolve()),
            "transform": [spec.view, data.image_size, *how],
        }
        its |= {"statistics": [data.spec.mean, data.spec.std], "views": [random_views, seed if random_views else None]}
        path = folder / f"{split}{f'_{views}_views' if random_views else ''}.safetensors"
        found[split] = kept_features(
            path, its, lambda images=images, n=random_views: _extract(data, images, encoder, n, place, compute)
        )
        if empty := int((torch.linalg.vector_norm(found[split].features, dim=1) == 0).sum()):
            say(f"note: {split}: {empty} images have features of length 0; no classifier can separate them")
    if missing := data.spec.num_classes - len(found["val"].labels.unique()):
        say(f"note: {missing} of {data.spec.num_classes} classes have no validation image; selection uses the others")
    return found


class InAutocast(nn.Module):
    """A network that runs in the precision of --amp, without gradients."""

    def __init__(self, network: nn.Module, compute: ComputeConfig):
        super().__init__()
        self.network, self.compute = network, compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.compute.autocast():
            return self.network(x)


def _extract(data: Data, images, encoder: nn.Module, views: int, place: Place, compute: ComputeConfig) -> Features:
    """Compute the features of one list, in the evaluation view or in each of the random views."""
    network, normalise, name = InAutocast(encoder, compute), data.normalise(place.device), images.list_file.name
    parts = []
    for view in range(max(views, 1)):
        if views:  # draws are numbered, so that views do not depend on the order or the number of workers
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
