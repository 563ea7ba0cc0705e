"""Data loaders: training batches from a sampler, and evaluation loaders that yield every image of a split once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagenet_inat.images import LongTailDataset, report_bad_images
from imagenet_inat.lists.known import class_names
from imagenet_inat.options import DataConfig
from imagenet_inat.paths import SPLITS
from imagenet_inat.samplers import SAMPLERS, EpochBatches, check_batch_size
from moco.loader import Normalise
from moco.views.batch_views import NUM_RANDOM, BatchViews
from utils import distributed
from utils.distributed import log
from utils.distributed.launch import ProcessInfo
from utils.randomness import Stream, numpy_rng, to_device
from utils.run.signals import ignore_in_worker

EVAL_BATCH = 256  # images per process and evaluation batch, unless --eval-batch-size is given or training uses more


def describe_data(images: LongTailDataset, normalise: Normalise) -> dict[str, object]:
    """Return what checkpoints store about the training images.

    The entries are train_counts, class_names and statistics; see `RunState`.
    """
    names = class_names(images.list_file, images.num_classes)
    return {"train_counts": images.class_counts.tolist(), "class_names": names, "statistics": normalise.statistics}


class QuietDataLoader(DataLoader):
    """A DataLoader without the warning about many workers, which PyTorch repeats for each loader and epoch."""

    def check_worker_number_rationality(self) -> None:
        """Do nothing: `utils.distributed.launch` has printed a note."""


class DeviceBatches:
    """A DataLoader whose batches are normalised views and labels on the device.

    It yields (images, labels): images (N, 3, S, S) float32, or a list of two such tensors if the data set's transform
    returns two crops; labels (N,) int64.

    Args:
        loader_options: arguments of DataLoader that select the images of each batch (sampler, batch_size, …).
    """

    def __init__(self, images: Dataset, normalise: Normalise, workers: int, **loader_options):
        self.dataset, self.normalise = images, normalise
        pin = normalise.device.type == "cuda"
        self.loader = QuietDataLoader(
            images, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_in_worker, **loader_options
        )

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def num_common_batches(self) -> int:
        """Number of full batches that every rank has. In evaluation, some ranks have more images."""
        return len(self.dataset) // distributed.world_size() // self.loader.batch_size

    def start_at(self, epoch: int, first_step: int) -> None:
        """Set the epoch and the step at which the next iteration starts (training loaders only)."""
        self.loader.batch_sampler.set_epoch(epoch, first_step)

    def describe_data(self) -> dict[str, object]:
        """Return what checkpoints store about the training images; see `describe_data`."""
        return describe_data(self.dataset, self.normalise)

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
        batches: the sampler's batches.
        views: the training views of each image.

    Raises:
        InputError: the images differ in size.
    """

    def __init__(self, images: LongTailDataset, normalise: Normalise, batches: EpochBatches, views: list[BatchViews]):
        self.dataset, self.normalise, self.batches, self.views = images, normalise, batches, views
        self.pixels, self.labels = images.stacked_pixels(), torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.batches)

    def start_at(self, epoch: int, first_step: int) -> None:
        self.batches.set_epoch(epoch, first_step)

    def __iter__(self) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
        device, size = self.normalise.device, self.batches.used_size
        # One row of random numbers per view of the epoch, so that a view does not depend on its batch or process.
        rng = numpy_rng(self.dataset.seed, Stream.BATCH_VIEWS, self.batches.epoch)
        uniform = torch.from_numpy(rng.random((size, len(self.views), NUM_RANDOM), dtype=np.float32))
        for index_draw_pairs in self.batches:
            index, draw = torch.tensor(index_draw_pairs).T
            pixels = to_device(self.pixels[index], device).permute(0, 3, 1, 2)  # (N, 3, H, W)
            rows = to_device(uniform[draw % self.batches.draws_per_epoch], device)  # (N, views, NUM_RANDOM)
            views = [
                self.normalise.normalise(view(pixels, row))
                for view, row in zip(self.views, rows.unbind(1), strict=True)
            ]
            yield views if len(views) > 1 else views[0], to_device(self.labels[index], device)


def build_worker_loader(images: Dataset, batches: EpochBatches, normalise: Normalise, workers: int) -> DeviceBatches:
    """Return a loader for this rank's part of the sampler's batches, which loads and augments in worker processes."""
    return DeviceBatches(images, normalise, workers, batch_sampler=batches, persistent_workers=workers > 0)


def _choose_training_loader(
    data: DataConfig, images: LongTailDataset, batches: EpochBatches, process: ProcessInfo, views: int
) -> DeviceBatches:
    """Return the training loader of a run, with `views` views per image; see `DataConfig.batch_views`."""
    normalise = data.normalise(process.device)
    if not data.batch_views:
        return build_worker_loader(images, batches, normalise, process.workers)
    log(f"views: whole batches are augmented on {process.device} (--device-aug), from {len(images)} decoded images")
    return DeviceViews(images, normalise, batches, data.device_views(views, process.device))


def build_eval_loader(images: Dataset, batch_size: int, normalise: Normalise, workers: int) -> DeviceBatches:
    """Return a loader for this rank's images, in order. Over all ranks, every image appears once.

    The workers end after each pass, so that they hold no memory during the next training epoch.
    """
    own_indices = range(distributed.rank(), len(images), distributed.world_size())
    return DeviceBatches(images, normalise, workers, batch_size=batch_size, sampler=own_indices)


def build_stage1_loader(
    data: DataConfig,
    sampling: str,
    batch_size: int,
    seed: int,
    process: ProcessInfo,
    keep_last: bool = False,
    views: int = 2,
) -> DeviceBatches:
    """Return the training loader of stage 1, with `views` views per image. sampling: a key of SAMPLERS."""
    images = data.open_decoded("train", data.train_views(views), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed, keep_last)
    return _choose_training_loader(data, images, batches, process, views=views)


def build_stage2_loader(
    data: DataConfig, sampling: str, batch_size: int, seed: int, process: ProcessInfo
) -> DeviceBatches:
    """Return the training loader of stage 2, with one view per image. sampling: a key of SAMPLERS."""
    images = data.open_decoded("train", data.train_view(), seed)
    batches = SAMPLERS[sampling](images.labels, data.spec.repeat, batch_size, seed)
    return _choose_training_loader(data, images, batches, process, views=1)


def check_lists_and_hash(
    data: DataConfig, sampling: str, batch_size: int, splits: tuple[str, ...] = ()
) -> dict[str, str]:
    """Check the lists of these splits, by default of all, before stage 2 creates anything, and return their hashes.

    Returns:
        The hashes as arguments of the run, such as {"train_list": digest}. A resumed run must use the same lists.

    Raises:
        InputError: a list cannot be used, or has too few images for a batch.
    """
    opened = {split: data.open(split) for split in splits or SPLITS}
    if "train" in opened:
        check_batch_size(sampling, opened["train"].labels, data.spec.repeat, batch_size)
    return {f"{split}_list": images.digest for split, images in opened.items()}


def build_eval_loaders(
    data: DataConfig, splits: tuple[str, ...], batch_size: int, process: ProcessInfo
) -> dict[str, DeviceBatches]:
    """Return evaluation loaders for the splits. batch_size: images per batch in each process."""
    normalise = data.normalise(process.device)
    opened = {split: data.open_decoded(split, data.eval_view()) for split in splits}
    return {
        split: build_eval_loader(images, batch_size, normalise, process.workers) for split, images in opened.items()
    }


def build_val_and_test_loaders(
    data: DataConfig, batch_size: int, eval_batch_size: int | None, process: ProcessInfo
) -> dict[str, DeviceBatches]:
    """Return the loaders of validation and test, or only one if the same list serves as both.

    Args:
        batch_size: global batch size of training.
        eval_batch_size: --eval-batch-size, per process; None: EVAL_BATCH, or the process's part of `batch_size` if that
            is larger.
    """
    size = eval_batch_size or max(EVAL_BATCH, batch_size // distributed.world_size())
    opened = build_eval_loaders(data, ("val",) if data.val_is_test else ("val", "test"), size, process)
    for images in (batches.dataset for batches in opened.values()):
        if images.layout:
            log(f"{images.list_file.name}: layout {images.layout}")
    return opened
