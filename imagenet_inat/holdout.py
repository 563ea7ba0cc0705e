"""Hold out part of the training list for validation, for data sets without a validation list."""

import numpy as np

from utils.randomness import Stream, numpy_rng


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Return the mask of the held-out images, (n,) bool, for labels (n,).

    Each class holds out the share of its images, rounded down, but at least one. Classes
    with a single image hold out none. The mask does not depend on the run's seed, so that
    both stages hold out the same images.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        count = max(1, int(share * len(images))) if len(images) > 1 else 0
        mask[numpy_rng(0, Stream.HOLDOUT, int(label)).permutation(images)[:count]] = True
    return mask
