"""Long-tailed class sizes, largest class first, and random selection of images for them."""

import math
from collections.abc import Callable
from itertools import islice

import numpy as np

EPSILON = 1e-9  # 1000·32^(-2/5) is 250, but 249.99999999999997 in floating point

# The size of class c of C as a fraction of the largest, for the imbalance ρ = largest ÷ smallest.
PROFILES: dict[str, Callable[[int, int, float], float]] = {
    # A straight line on a logarithmic axis, as in the usual long-tailed CIFAR (Cui et al. 2019).
    "exp": lambda c, num_classes, imbalance: imbalance ** (-c / (num_classes - 1)),
    # Half of the classes are large, half small (Buda et al. 2018).
    "step": lambda c, num_classes, imbalance: 1.0 if c < num_classes / 2 else 1 / imbalance,
    # A straight line on two logarithmic axes (quantiles of a Pareto distribution): few large classes, a long tail.
    "pareto": lambda c, num_classes, imbalance: (c + 1) ** (-math.log(imbalance) / math.log(num_classes)),
}


def class_fractions(profile: str, num_classes: int, imbalance: float) -> list[float]:
    """Return the class sizes as fractions of the largest, from 1 down to 1/imbalance. Requires C ≥ 2."""
    return [PROFILES[profile](c, num_classes, imbalance) for c in range(num_classes)]


def class_sizes(profile: str, num_classes: int, imbalance: float, largest: int) -> list[int]:
    """Return the number of images of each class, ⌊largest · fraction⌋."""
    return [int(largest * fraction + EPSILON) for fraction in class_fractions(profile, num_classes, imbalance)]


def sample_splits(
    images: list[list[str]], train: list[int], val: list[int] | int, test: list[int] | int, seed: int
) -> dict[str, tuple[list[str], list[int]]]:
    """Select random images for train, val and test. The selection depends only on the seed, not on the machine.

    Args:
        images: paths of each class.
        train, val, test: number of images of each class in each split, or one number for all classes.

    Returns:
        The paths and labels of each split.
    """
    rng = np.random.RandomState(seed)  # the legacy generator gives the same numbers in every NumPy version
    splits: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "val": ([], []), "test": ([], [])}
    sizes = {
        split: np.broadcast_to(size, len(images)) for split, size in (("test", test), ("val", val), ("train", train))
    }
    for label, paths in enumerate(images):
        shuffled = iter([paths[i] for i in rng.permutation(len(paths))])
        for split in sizes:
            selected = list(islice(shuffled, int(sizes[split][label])))
            splits[split][0].extend(selected)
            splits[split][1].extend([label] * len(selected))
    return splits
