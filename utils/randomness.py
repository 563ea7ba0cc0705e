"""Counter-based randomness: every random number is a function of the seed and of its purpose and position in the run.

No random state is carried from step to step, so none has to be saved. A run resumed at any epoch, with any number of
loader workers, therefore repeats the same draws.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """The purpose of a random number; each purpose has an independent stream."""

    ORDER = 0  # key: epoch
    AUGMENT = 1  # key: index of the sampled image in the run
    POSITIVES = 2  # key: step, rank
    SHUFFLE = 3  # key: step; equal on all ranks
    CLASS_ORDER = 4  # key: cycle over the classes
    CLASS_IMAGES = 5  # key: class, cycle over its images
    BATCH_VIEWS = 6  # key: epoch; one row for each view of the epoch
    HOLDOUT = 7  # key: class
    LAYERS = 8  # key: epoch, step, rank; dropout and other random layers


def derive_seed(seed: int, stream: Stream, *key: int) -> int:
    """Return a 64-bit seed derived from the run's seed, the stream and the key."""
    return int(np.random.SeedSequence((seed, int(stream), *key)).generate_state(1, np.uint64)[0])


def numpy_rng(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return a NumPy generator for this stream and key."""
    return np.random.default_rng(np.random.SeedSequence((seed, int(stream), *key)))


def torch_rng(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """Return a torch generator on the CPU, so that random numbers do not depend on the device."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *key))


def to_device(draws: Tensor, device: torch.device) -> Tensor:
    """Copy CPU numbers to the device without waiting; from pageable memory, the copy would wait for queued work."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)
