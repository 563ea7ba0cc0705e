"""Data loaders: training batches from a sampler, and evaluation loaders that yield every image of a split once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagenet_inat.images import LongTailDataset, report_bad_images
from imagenet_inat.options import Data
from imagenet_inat.paths import SPLITS
from imagenet_inat.samplers import SAMPLERS, CountedBatches
from moco.loader import Normalise, TwoCropsTransform
from moco.views.batch import NUMBERS, BatchViews
from utils import distributed
from utils.distributed import say
from utils.randomness import Stream, numpy_rng, sent
from utils.run.launch import Place
from utils.run.signals import ignore_in_worker

EVAL_BATCH = 256  # smallest evaluation batch of a process


class DeviceBatches:
    """A DataLoader whose batches are normalised views and labels on the device.

    It yields (images, labels): images (N, 3, S, S) float32, or a list of two such tensors
    if the data set's transform returns two crops; labels (N,) int64.

    Args:
        order: DataLoader's arguments that select the images of each batch (sampler, batch_size, …).
    """

    def __init__(self, images: Dataset, normalise: Normalise, workers: int, **order):
        self.dataset, self.normalise = images, normalise
        pin = normalise.device.type == "cuda"
        self.loader = DataLoader(images, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_in_worker, **order)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def on_every_rank(self) -> int:
        """Number of full batches that every rank has. In evaluation, some ranks have more images."""
        return len(self.dataset) // distributed.world_size() // self.loader.batch_size

    def start_at(self, epoch: int, first_step: int) -> None:
        """Set the epoch and the step at which the next iteration starts (training loaders only)."""
        self.loader.batch_sampler.set_epoch(epoch, first_step)

    def report_bad_images(self, run_dir: Path) -> None:
        """Report skipped images after a training epoch; see `images.report_bad_images`."""
        report_bad_images(self.dataset, run_dir, self.normalise.device)

    def __iter__(self) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
        for views, labels in self.loader:
            images = [self.normalise(view) for view in views] if isinstance(views, list) else self.normalise(views)
            yield images, labels.to(self.normalise.device, non_blocking=True)


class DeviceViews(DeviceBatches):
    """DeviceBatches for decoded images of one size: whole batches are augmented on the device, without workers.

    Args:
        batches: the sampler's batches. view: the training view. count: views per image.

    Raises:
        InputError: the images differ in size.
    """

    def __init__(
        self, images: LongTailDataset, normalise: Normalise, batches: CountedBatches, view: BatchViews, count: int
    ):
        self.dataset, self.normalise, self.batches, self.view, self.count = images, normalise, batches, view, count
        self.pixels, self.labels = images.of_one_size(), torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.batches)

    def start_at(self, epoch: int, first_step: int) -> None:
        self.batches.set_epoch(epoch, first_step)

    def __iter__(self) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
        device, size = self.normalise.device, self.batches.size
        # One row of random numbers per view of the epoch, so that a view does not depend on its batch or process.
        rng = numpy_rng(self.dataset.seed, Stream.BATCH_VIEWS, self.batches.epoch)
        uniform = torch.from_numpy(rng.random((size, self.count, NUMBERS), dtype=np.float32))
        for pairs in self.batches:
            index, place = torch.tensor(pairs).T
            pixels = sent(self.pixels[index], device).permute(0, 3, 1, 2)  # (N, 3, H, W)
            rows = sent(uniform[place % self.batches.numbers], device)  # (N, count, NUMBERS)
            views = [self.normalise.finish(self.view(pixels, row)) for row in rows.unbind(1)]
            yield views if self.count > 1 else views[0], sent(self.labels[index], device)


def train_loader(images: Dataset, batches: CountedBatches, normalise: Normalise, workers: int) -> DeviceBatches:
    """Return a loader for this rank's share of the sampler's batches."""
    return DeviceBatches(images, normalise, workers, batch_sampler=batches, persistent_workers=workers > 0)


def _open(data: Data, images: LongTailDataset, batches: CountedBatches, place: Place, views: int) -> DeviceBatches:
    """Return the training loader of a run, with `views` views per image."""
    normalise = data.normalise(place.device)
    if not data.batch_views:
        return train_loader(images, batches, normalise, place.workers)
    say(f"views: whole batches are augmented on {place.device}, from {len(images)} decoded images")
    return DeviceViews(images, normalise, batches, data.batch_view(place.device), views)


def eval_loader(images: Dataset, batch_size: int, normalise: Normalise, workers: int) -> DeviceBatches:
    """Return a loader for this rank's share of the images, in order. Over all ranks, every image appears once.

    The workers end after each pass, so that they hold no memory during the next training epoch.
    """
    share = range(distributed.rank(), len(images), distributed.world_size())
    return DeviceBatches(images, normalise, workers, batch_size=batch_size, sampler=share)


def open_pairs(
    data: Data, sampling: str, batch_size: int, seed: int, place: Place, keep_last: bool = False
) -> DeviceBatches:
    """Return the training loader of stage 1, with two views per image. sampling: a key of SAMPLERS."""
    images = data.open_decoded("train", TwoCropsTransform(data.train_view()), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed, keep_last)
    return _open(data, images, batches, place, views=2)


def open_images(data: Data, sampling: str, batch_size: int, seed: int, place: Place) -> DeviceBatches:
    """Return the training loader of stage 2, with one view per image. sampling: a key of SAMPLERS."""
    images = data.open_decoded("train", data.train_view(), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed)
    return _open(data, images, batches, place, views=1)


def check_lists(data: Data, sampling: str, batch_size: int) -> dict[str, str]:
    """Open the three lists once to check them, before stage 2 creates anything.

    Returns:
        The lists' digests, which are stored with the arguments: a resumed run must use the same lists.

    Raises:
        InputError: a list cannot be used, or has too few images for a batch.
    """
    opened = {split: data.open(split) for split in SPLITS}
    SAMPLERS[sampling](opened["train"].labels, data.spec.repeat, batch_size, 0)
    return {f"{split}_list": images.digest for split, images in opened.items()}


def open_splits(data: Data, splits: tuple[str, ...], batch_size: int, place: Place) -> dict[str, DeviceBatches]:
    """Return evaluation loaders for the splits. batch_size: images per batch in each process."""
    normalise = data.normalise(place.device)
    opened = {split: data.open_decoded(split, data.eval_view()) for split in splits}
    return {split: eval_loader(images, batch_size, normalise, place.workers) for split, images in opened.items()}


def open_evaluation(data: Data, batch_size: int, given: int | None, place: Place) -> dict[str, DeviceBatches]:
    """Return the loaders of validation and test, or only one if the same list serves as both.

    Args:
        batch_size: global batch size of training. given: --eval-batch-size.
    """
    size = given or max(EVAL_BATCH, batch_size // distributed.world_size())
    opened = open_splits(data, ("val",) if data.val_is_test else ("val", "test"), size, place)
    for images in (batches.dataset for batches in opened.values()):
        if images.layout:
            say(f"{images.list_file.name}: layout {images.layout}")
    return opened
