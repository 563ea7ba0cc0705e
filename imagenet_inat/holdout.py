"""Hold out part of the training list for validation, for data sets without a validation list."""

import numpy as np

from utils.randomness import Stream, numpy_rng


def holdout_mask(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the mask of the held-out images, (n,) bool, for labels (n,).

    This fraction of each class's images is held out, rounded down, but at least one image. Of a class with a single
    image, none is held out. The mask does not depend on the run's seed, so that both stages hold out the same images.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        count = max(1, int(fraction * len(images))) if len(images) > 1 else 0
        mask[numpy_rng(0, Stream.HOLDOUT, int(label)).permutation(images)[:count]] = True
    return mask
