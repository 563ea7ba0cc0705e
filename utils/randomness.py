"""Counted randomness: every draw is a function of the seed and of where it is used.

No random state is carried from step to step, so none has to be saved: a run goes
on from any epoch as if it had never stopped, with any number of loader workers.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a random number is for; keeps the streams of one seed apart."""

    ORDER = 0  # key: epoch
    AUGMENT = 1  # key: number of the draw in the run
    POSITIVES = 2  # key: step, rank
    SHUFFLE = 3  # key: step, the same on all ranks
    CLASS_ORDER = 4  # key: cycle over the classes
    CLASS_IMAGES = 5  # key: class, cycle over its images
    BATCH_VIEWS = 6  # key: epoch; a row for each view of it
    HOLDOUT = 7  # key: class
    LAYERS = 8  # key: epoch, step, rank; dropout and its like, inside a network


def counted_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 64-bit seed mixed from the run's seed, the stream and the place of use."""
    return int(np.random.SeedSequence((seed, int(stream), *key)).generate_state(1, np.uint64)[0])


def numpy_rng(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A NumPy generator for that place of use."""
    return np.random.default_rng(np.random.SeedSequence((seed, int(stream), *key)))


def torch_rng(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """A torch generator on the CPU, so that draws do not depend on the device."""
    return torch.Generator().manual_seed(counted_seed(seed, stream, *key))


def sent(draws: Tensor, device: torch.device) -> Tensor:
    """CPU numbers on the device; the host does not wait, as it would from pageable memory for all that is queued."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)
