"""DataLoaders: the training batches of a sampler, and every image of a split once."""

import torch
from torch.utils.data import DataLoader

from imagenet_inat.datasets import LongTailDataset
from imagenet_inat.samplers import CountedBatches
from utils import distributed
from utils.signals import ignore_in_worker


def train_loader(dataset: LongTailDataset, batches: CountedBatches, workers: int, device: torch.device) -> DataLoader:
    """This rank's share of the sampler's batches."""
    pinned = device.type == "cuda"
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_in_worker,
    )


def eval_loader(dataset: LongTailDataset, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    """This rank's share of the split, in order; over all ranks every image exactly once."""
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    return DataLoader(
        dataset,
        batch_size,
        sampler=share,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_in_worker,
    )
