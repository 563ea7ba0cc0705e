"""A long tail: its shapes, as images of each class, largest first; and cutting one out of the images there are."""

import math
from collections.abc import Callable
from itertools import islice

import numpy as np

EPSILON = 1e-9  # 1000·32^(-2/5) is 250, and 249.99999999999997 in floating point

# The size of class c of C as a share of the largest, for the imbalance ρ = largest ÷ smallest.
PROFILES: dict[str, Callable[[int, int, float], float]] = {
    # Straight on a logarithmic axis: the long-tailed CIFAR of the field (Cui et al. 2019).
    "exp": lambda c, num_classes, imbalance: imbalance ** (-c / (num_classes - 1)),
    # Half of the classes large, half small (Buda et al. 2018).
    "step": lambda c, num_classes, imbalance: 1.0 if c < num_classes / 2 else 1 / imbalance,
    # Straight on two logarithmic axes, the quantiles of a Pareto distribution: few large classes, a long flat tail.
    "pareto": lambda c, num_classes, imbalance: (c + 1) ** (-math.log(imbalance) / math.log(num_classes)),
}


def shares(profile: str, num_classes: int, imbalance: float) -> list[float]:
    """Class sizes as shares of the largest, from 1 down to 1/imbalance; C ≥ 2."""
    return [PROFILES[profile](c, num_classes, imbalance) for c in range(num_classes)]


def class_sizes(profile: str, num_classes: int, imbalance: float, largest: int) -> list[int]:
    """Images of each class, ⌊largest · share⌋."""
    return [int(largest * share + EPSILON) for share in shares(profile, num_classes, imbalance)]


def cut(
    images: list[list[str]], sizes: list[int], val: int, test: int, seed: int
) -> dict[str, tuple[list[str], list[int]]]:
    """Paths and labels of train, val and test; which image goes where is random, the same for a seed on any machine.

    Args:
        images: of each class. sizes: training images of each class; val, test: images a class.
    """
    rng = np.random.RandomState(seed)  # the legacy generator: the same on every NumPy
    parts: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "val": ([], []), "test": ([], [])}
    for label, (paths, size) in enumerate(zip(images, sizes, strict=True)):
        shuffled = iter([paths[i] for i in rng.permutation(len(paths))])
        for split, count in (("test", test), ("val", val), ("train", size)):
            part = list(islice(shuffled, count))
            parts[split][0].extend(part)
            parts[split][1].extend([label] * len(part))
    return parts
