"""Loaders: the training batches of a sampler, and every image of a split once, on the device."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imagenet_inat.datasets import DatasetSpec, LongTailDataset
from imagenet_inat.samplers import CountedBatches
from moco.loader import Normalise
from utils import distributed
from utils.signals import ignore_in_worker


class DeviceBatches:
    """The batches of a DataLoader as the model takes them: normalised views and labels, on the device.

    Yields (images, labels), images (N, 3, S, S) float32, or a list of two where the
    data set's transform gives two crops; labels (N,) int64.
    """

    def __init__(self, loader: DataLoader, spec: DatasetSpec, device: torch.device):
        self.loader, self.dataset, self.device = loader, loader.dataset, device
        self.normalise = Normalise(spec, device)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def on_every_rank(self) -> int:
        """How many batches each rank has for sure: in evaluation some have one more, or a fuller last one."""
        return len(self.dataset) // distributed.world_size() // self.loader.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
        for views, labels in self.loader:
            images = [self.normalise(view) for view in views] if isinstance(views, list) else self.normalise(views)
            yield images, labels.to(self.device, non_blocking=True)


def train_loader(
    dataset: LongTailDataset, batches: CountedBatches, workers: int, spec: DatasetSpec, device: torch.device
) -> DeviceBatches:
    """This rank's share of the sampler's batches."""
    pinned = device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_in_worker,
    )
    return DeviceBatches(loader, spec, device)


def eval_loader(
    dataset: LongTailDataset, batch_size: int, workers: int, spec: DatasetSpec, device: torch.device
) -> DeviceBatches:
    """This rank's share of the split, in order; over all ranks every image exactly once.

    Its workers end with each pass: kept, they would hold memory while the next epoch trains.
    """
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    pinned = device.type == "cuda"
    loader = DataLoader(
        dataset, batch_size, sampler=share, num_workers=workers, pin_memory=pinned, worker_init_fn=ignore_in_worker
    )
    return DeviceBatches(loader, spec, device)
