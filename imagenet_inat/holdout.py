"""A part of the training list held out for choosing, where a data set has no validation list of its own."""

import numpy as np

from utils.randomness import Stream, numpy_rng


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: of each class that share of its images, rounded down, at least one, and none of a class of one.

    The same for all seeds, so that both stages hold out the same. labels: (n,).
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        count = max(1, int(share * len(images))) if len(images) > 1 else 0
        mask[numpy_rng(0, Stream.HOLDOUT, int(label)).permutation(images)[:count]] = True
    return mask
