"""Loaders: the training batches of a sampler, and every image of a split once, on the device."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagenet_inat.images import LongTailDataset, report_bad_images
from imagenet_inat.options import Data
from imagenet_inat.samplers import SAMPLERS, CountedBatches
from imagenet_inat.whereabouts import SPLITS
from moco.loader import Normalise, TwoCropsTransform
from moco.views.batch import NUMBERS, BatchViews
from utils import distributed
from utils.distributed import say
from utils.randomness import Stream, numpy_rng, sent
from utils.run.launch import Place
from utils.run.signals import ignore_in_worker

EVAL_BATCH = 256  # images a process measures at least at a time


class DeviceBatches:
    """The batches of a DataLoader as the model takes them: normalised views and labels, on the device.

    Yields (images, labels), images (N, 3, S, S) float32, or a list of two where the
    data set's transform gives two crops; labels (N,) int64.
    order: which images make up which batch, as DataLoader takes it.
    """

    def __init__(self, images: Dataset, normalise: Normalise, workers: int, **order):
        self.dataset, self.normalise = images, normalise
        pin = normalise.device.type == "cuda"
        self.loader = DataLoader(images, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_in_worker, **order)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def on_every_rank(self) -> int:
        """How many batches each rank has for sure: in evaluation some have one more, or a fuller last one."""
        return len(self.dataset) // distributed.world_size() // self.loader.batch_size

    def start_at(self, epoch: int, first_step: int) -> None:
        """Of training: which batches come next."""
        self.loader.batch_sampler.set_epoch(epoch, first_step)

    def report_bad_images(self, run_dir: Path) -> None:
        """Of training, after an epoch: see `images.report_bad_images`."""
        report_bad_images(self.dataset, run_dir, self.normalise.device)

    def __iter__(self) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
        for views, labels in self.loader:
            images = [self.normalise(view) for view in views] if isinstance(views, list) else self.normalise(views)
            yield images, labels.to(self.normalise.device, non_blocking=True)


class DeviceViews(DeviceBatches):
    """The same, of decoded images of one size: a batch's views are made at once on the device, in this process.

    batches: of the sampler. view: of the training. count: views of an image.
    Raises InputError: the images are not of one size.
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
        # A row for each view of the epoch: whatever batch and process it falls to, it is the same view.
        rng = numpy_rng(self.dataset.seed, Stream.BATCH_VIEWS, self.batches.epoch)
        uniform = torch.from_numpy(rng.random((size, self.count, NUMBERS), dtype=np.float32))
        for pairs in self.batches:
            index, place = torch.tensor(pairs).T
            pixels = sent(self.pixels[index], device).permute(0, 3, 1, 2)  # (N, 3, H, W)
            rows = sent(uniform[place % self.batches.numbers], device)  # (N, count, NUMBERS)
            views = [self.normalise.finish(self.view(pixels, row)) for row in rows.unbind(1)]
            yield views if self.count > 1 else views[0], sent(self.labels[index], device)


def train_loader(images: Dataset, batches: CountedBatches, normalise: Normalise, workers: int) -> DeviceBatches:
    """This rank's share of the sampler's batches."""
    return DeviceBatches(images, normalise, workers, batch_sampler=batches, persistent_workers=workers > 0)


def _open(data: Data, images: LongTailDataset, batches: CountedBatches, place: Place, views: int) -> DeviceBatches:
    """The training loader of a run; views: of each image."""
    normalise = data.normalise(place.device)
    if not data.batch_views:
        return train_loader(images, batches, normalise, place.workers)
    say(f"views: made on {place.device} for a whole batch, of {len(images)} decoded images")
    return DeviceViews(images, normalise, batches, data.batch_view(place.device), views)


def eval_loader(images: Dataset, batch_size: int, normalise: Normalise, workers: int) -> DeviceBatches:
    """This rank's share of the images, in order; over all ranks every image exactly once.

    Its workers end with each pass: kept, they would hold memory while the next epoch trains.
    """
    share = range(distributed.rank(), len(images), distributed.world_size())
    return DeviceBatches(images, normalise, workers, batch_size=batch_size, sampler=share)


def open_pairs(
    data: Data, sampling: str, batch_size: int, seed: int, place: Place, keep_last: bool = False
) -> DeviceBatches:
    """Stage 1's training batches: two views of each image; sampling: a name of SAMPLERS."""
    images = data.open_decoded("train", TwoCropsTransform(data.train_view()), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed, keep_last)
    return _open(data, images, batches, place, views=2)


def open_images(data: Data, sampling: str, batch_size: int, seed: int, place: Place) -> DeviceBatches:
    """Stage 2's training batches: one view of each image; sampling: a name of SAMPLERS."""
    images = data.open_decoded("train", data.train_view(), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed)
    return _open(data, images, batches, place, views=1)


def check_lists(data: Data, sampling: str, batch_size: int) -> dict[str, str]:
    """Open the three lists once, before anything of stage 2 is made.

    Returns:
        Their digests, for the arguments: a run goes on with the lists it began with.

    Raises:
        InputError: one cannot be used, or has too few images for a batch.
    """
    opened = {split: data.open(split) for split in SPLITS}
    SAMPLERS[sampling](opened["train"].labels, data.spec.repeat, batch_size, 0)
    return {f"{split}_list": images.digest for split, images in opened.items()}


def open_splits(data: Data, splits: tuple[str, ...], batch_size: int, place: Place) -> dict[str, DeviceBatches]:
    """Splits in their evaluation view; batch_size: images a process takes at a time."""
    normalise = data.normalise(place.device)
    opened = {split: data.open_decoded(split, data.eval_view()) for split in splits}
    return {split: eval_loader(images, batch_size, normalise, place.workers) for split, images in opened.items()}


def open_evaluation(data: Data, batch_size: int, given: int | None, place: Place) -> dict[str, DeviceBatches]:
    """Validation and test; one loader where one list serves as both.

    Args:
        batch_size: the global one of training. given: --eval-batch-size.
    """
    size = given or max(EVAL_BATCH, batch_size // distributed.world_size())
    opened = open_splits(data, ("val",) if data.val_is_test else ("val", "test"), size, place)
    for images in (batches.dataset for batches in opened.values()):
        if images.layout:
            say(f"{images.list_file.name}: layout {images.layout}")
    return opened
