"""Samplers: the images of each batch, as a function of (seed, epoch) that does not depend on the number of ranks.

A sampler yields a rank's part of each global batch as (index, draw) pairs for `LongTailDataset`. `draw` is the number
of the draw in the run, from 0.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from utils import distributed
from utils.errors import InputError
from utils.randomness import Stream, numpy_rng


class EpochBatches(Sampler):
    """Base class of the samplers: it yields the batches of an epoch, from the epoch and step given to `set_epoch`.

    Subclasses implement `epoch_indices(epoch)`.

    Args:
        epoch_size: images in an epoch.
        batch_size: global batch size, split evenly over the ranks.
        seed: the run's seed.
        keep_last: whether the last, incomplete batch of an epoch is used, as far as it divides evenly over the ranks.

    Raises:
        InputError: the batch is larger than an epoch.
    """

    def __init__(self, epoch_size: int, batch_size: int, seed: int, keep_last: bool = False):
        rest = epoch_size % batch_size // distributed.world_size() * distributed.world_size() if keep_last else 0
        self.used_size = epoch_size // batch_size * batch_size + rest
        self.steps = -(-self.used_size // batch_size)
        # Draw i of epoch e has the number e * draws_per_epoch + i. This must not depend on the number of processes.
        self.draws_per_epoch = epoch_size if keep_last else self.used_size
        if not self.steps:
            raise InputError(
                f"--batch-size: {batch_size} images per step, expected at most {epoch_size}, the images in an epoch"
            )
        self.batch_size, self.seed = batch_size, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        self.epoch, self.first_step = epoch, first_step

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Return the image indices of the epoch in order, (size,)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = self.epoch_indices(self.epoch).tolist()
        for begin in range(self.first_step * self.batch_size, self.used_size, self.batch_size):
            local_size = min(self.batch_size, self.used_size - begin) // distributed.world_size()
            start = begin + distributed.rank() * local_size
            yield [(indices[i], self.epoch * self.draws_per_epoch + i) for i in range(start, start + local_size)]


class ShuffledBatches(EpochBatches):
    """Batches that contain every image `repeat` times per epoch, in random order."""

    def __init__(self, num_images: int, repeat: int, batch_size: int, seed: int, keep_last: bool = False):
        super().__init__(num_images * repeat, batch_size, seed, keep_last)
        self.num_images, self.epoch_size = num_images, num_images * repeat

    def epoch_indices(self, epoch: int) -> np.ndarray:
        order = numpy_rng(self.seed, Stream.ORDER, epoch).permutation(self.epoch_size)
        return order[: self.used_size] % self.num_images


class ClassAwareBatches(EpochBatches):
    """Class-balanced batches (the sampler of the classifier-balancing code, Kang et al. 2020).

    The sampler cycles over the classes in random order and reshuffles them after each cycle. Each visit to a class
    draws 4 images from the class's own shuffled cycle over its images. Both cycles continue from epoch to epoch.

    Draw t belongs to the class visit v = t // 4. With C classes, the class is entry v % C of class cycle v // C. The
    image is number 4 · (v // C) + t % 4 of the class's own sequence. No earlier draw is needed to compute it. Classes
    without images are omitted.
    """

    PER_VISIT = 4

    def __init__(self, labels: np.ndarray, repeat: int, batch_size: int, seed: int, keep_last: bool = False):
        super().__init__(len(labels) * repeat, batch_size, seed, keep_last)
        by_class = np.argsort(labels, kind="stable")
        present, first = np.unique(labels[by_class], return_index=True)
        self.images = dict(zip(present.tolist(), np.split(by_class, first[1:]), strict=True))
        self._class_cycle = functools.lru_cache(maxsize=2)(self._shuffle_classes)
        # The current cycle of every class is cached, because the next visit to the class uses it again.
        self._image_cycle = functools.lru_cache(maxsize=2 * len(present))(self._shuffle_images)

    def _shuffle_classes(self, cycle: int) -> np.ndarray:
        return numpy_rng(self.seed, Stream.CLASS_ORDER, cycle).permutation(list(self.images))

    def _shuffle_images(self, label: int, cycle: int) -> np.ndarray:
        return numpy_rng(self.seed, Stream.CLASS_IMAGES, label, cycle).permutation(self.images[label])

    def _image(self, draw: int) -> int:
        visit, draw_in_visit = divmod(draw, self.PER_VISIT)
        class_cycle, position = divmod(visit, len(self.images))
        label = int(self._class_cycle(class_cycle)[position])
        image_cycle, position = divmod(class_cycle * self.PER_VISIT + draw_in_visit, len(self.images[label]))
        return int(self._image_cycle(label, image_cycle)[position])

    def epoch_indices(self, epoch: int) -> np.ndarray:
        return np.array([self._image(epoch * self.draws_per_epoch + i) for i in range(self.used_size)])


# (labels, repeat, batch_size, seed, keep_last) -> batches.
SAMPLERS: dict[str, Callable[..., EpochBatches]] = {
    "class-balanced": ClassAwareBatches,
    "instance": lambda labels, *options: ShuffledBatches(len(labels), *options),
}


def check_batch_size(sampling: str, labels: np.ndarray, repeat: int, batch_size: int, keep_last: bool = False) -> None:
    """Raise InputError if the batch is larger than an epoch. sampling: a key of SAMPLERS."""
    SAMPLERS[sampling](labels, repeat, batch_size, 0, keep_last)
