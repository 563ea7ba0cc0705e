"""Features of a data set's splits, computed with a frozen encoder, to which classifiers are fitted."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import PIL
import torch
import torchvision
from torch import nn

from imagenet_inat.images import LongTailDataset
from imagenet_inat.loaders import DeviceBatches, build_eval_loader
from imagenet_inat.options import DataConfig
from imagenet_inat.paths import SPLITS
from imagenet_inat.sets import idx
from utils.distributed import log
from utils.distributed.launch import ProcessInfo
from utils.measure.extraction import extract_features
from utils.measure.feature_cache import Features, cached_features, weights_digest
from utils.run.compute import ComputeConfig

BATCH_SIZE = 256
PROGRESS_BAR_ABOVE = 5000  # lists with more images show a progress bar


def compute_split_features(
    data: DataConfig,
    encoder: nn.Module,
    checkpoint: Path,
    run_dir: Path,
    views: int,
    seed: int,
    process: ProcessInfo,
    compute: ComputeConfig,
) -> dict[str, Features]:
    """Return the features of train, val and test, cached in features_<checkpoint>/ beside the checkpoint.

    If this folder is not writable, they are cached in the run folder.

    Args:
        encoder: maps (N, 3, S, S) to (N, d), on the device.
        checkpoint: the file that contains the encoder.
        run_dir: the run folder.
        views: number of random views per training image, from `seed`; 0: the evaluation view, as for val and test.

    Raises:
        InputError: a list or an image cannot be used, features are not finite, or no folder is writable.
    """
    name = f"features_{checkpoint.name.split('.')[0]}"
    folders = [checkpoint.parent / name, run_dir / name]
    encoder_metadata = _encoder_metadata(encoder, process, compute)
    features = {}
    for split in SPLITS:
        if split == "test" and data.val_is_test:
            features[split] = features["val"]
            continue
        random_views = views if split == "train" else 0
        images = data.open(split, data.train_view() if random_views else data.eval_view(), seed)
        metadata = encoder_metadata | _images_metadata(data, images, random_views, seed)
        file = f"{split}{f'_{views}_views' if random_views else ''}.safetensors"
        features[split] = cached_features(
            [folder / file for folder in folders],
            metadata,
            lambda images=images, n=random_views: _extract(data, images, encoder, n, process, compute),
        )
        if empty := int((torch.linalg.vector_norm(features[split].features, dim=1) == 0).sum()):
            log(f"note: {split}: {empty} images have features of length 0; no classifier can separate them")
    if missing := data.spec.num_classes - len(features["val"].labels.unique()):
        log(f"note: {missing} of {data.spec.num_classes} classes have no validation image; selection uses the others")
    return features


def digest_files(root: Path, paths: Iterable[str]) -> str:
    """Return a digest of the image files at a list's paths, which changes if an image is edited.

    It covers size and modification time of each image, and the content of IDX files. A missing image counts as such.
    """
    sha, idx_files = hashlib.sha256(), set()
    for path in paths:
        if idx.is_inside(path):
            idx_files.add(idx.find_file((root / path).parent))
            continue
        try:
            info = os.stat(root / path)
        except OSError:
            sha.update(b"missing\n")
        else:
            sha.update(b"%d %d\n" % (info.st_size, info.st_mtime_ns))
    for file in sorted(idx_files):
        sha.update(hashlib.sha256(idx.content(file)).digest())
    return sha.hexdigest()[:16]


def _encoder_metadata(encoder: nn.Module, process: ProcessInfo, compute: ComputeConfig) -> dict[str, object]:
    # The file of the checkpoint can change after its weights are read, so the weights themselves are the key.
    metadata = {"weights": weights_digest(encoder), "device": process.device.type, "amp": str(compute.dtype)}
    metadata |= {"versions": [torch.__version__, torchvision.__version__, PIL.__version__]}
    return metadata | ({"tf32": True} if compute.tf32 else {})


def _images_metadata(data: DataConfig, images: LongTailDataset, random_views: int, seed: int) -> dict[str, object]:
    spec, view_options = data.spec, [data.crop_scale, data.spec.jitter, data.device_aug] if random_views else []
    return {
        "list": images.digest,
        # The same list may refer to different images below another root, and images may be edited in place.
        "root": str(images.root.resolve()),
        "images": digest_files(images.root, (path.decode() for path in images.paths.tolist())),
        "transform": [spec.view, data.image_size, *view_options, *["as shown"] * spec.as_shown],
        "statistics": [spec.mean, spec.std],
        "views": [random_views, seed if random_views else None],
    }


class InAutocast(nn.Module):
    """A network that runs in the precision of --amp."""

    def __init__(self, network: nn.Module, compute: ComputeConfig):
        super().__init__()
        self.network, self.compute = network, compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.compute.autocast():
            return self.network(x)


def _extract(
    data: DataConfig, images, encoder: nn.Module, views: int, process: ProcessInfo, compute: ComputeConfig
) -> Features:
    """Compute the features of one list, in the evaluation view or in each of the random views."""
    if data.cache_decoded:
        images.cache_decoded()
    network, normalise, name = InAutocast(encoder, compute), data.normalise(process.device), images.list_file.name
    view_features = []
    for view in range(max(views, 1)):
        if views:  # draws are numbered, so that views do not depend on the order or the number of workers
            order = [(index, view * len(images) + index) for index in range(len(images))]
            loader = DeviceBatches(images, normalise, process.workers, batch_size=BATCH_SIZE, sampler=order)
        else:
            loader = build_eval_loader(images, BATCH_SIZE, normalise, process.workers)
        log(f"features: {name}, {f'view {view + 1} of {views}' if views else 'evaluation view'}, {len(images)} images")
        bar = name if len(images) > PROGRESS_BAR_ABOVE else None
        features = extract_features(network, loader, where=name, postprocess=lambda features: features, progress=bar)
        view_features.append(Features(*(tensor.cpu() for tensor in features)))
    if len(view_features) == 1:
        return view_features[0]
    return Features(*(torch.cat(tensors) for tensors in zip(*view_features, strict=True)))
