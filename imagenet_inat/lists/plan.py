"""How many images of each class go to train, val and test."""

from typing import NamedTuple

import numpy as np

from imagenet_inat.lists.profiles import EPSILON, class_fractions, class_sizes
from utils.errors import InputError

NATURAL = "natural"  # the profile that uses every image
MIN_TO_SPLIT = 3  # natural: classes with fewer images are used only for training


class SplitPlan(NamedTuple):
    """Settings of a split.

    Attributes:
        profile: NATURAL, or a key of PROFILES, which selects a long-tailed subset.
        seed: random seed of the selection of images.
        val, test: images of each class that are split off from the training images: a share below 1 (float), or a
            number (int). None: the default of the profile, or 0 if the source has a folder of this split.
        imbalance: largest / smallest class of a subset.
        largest: number of training images of the largest class of a subset; None: as many as possible.
        min_images: classes with fewer training images, before the split, are omitted.
    """

    profile: str = NATURAL
    seed: int = 0
    val: float | int | None = None
    test: float | int | None = None
    imbalance: float | None = None
    largest: int | None = None
    min_images: int = 0

    def with_defaults(self, existing: set[str]) -> "SplitPlan":
        """Return the plan with numbers for val and test. existing: the splits that need not be split off.

        Raises:
            InputError: a number is given for a split that exists, or no image would remain for training.
        """
        defaults = {"val": 0.1, "test": 0.2} if self.profile == NATURAL else {"val": 10, "test": 20}
        values = {}
        for split, default in defaults.items():
            given = getattr(self, split)
            if split in existing and given is not None:
                raise InputError(f"--{split} {given}: a folder of this split exists; omit --{split}")
            values[split] = 0 if split in existing else default if given is None else given
        if sum(value for value in values.values() if isinstance(value, float)) >= 1:
            raise InputError(f"--val {values['val']} --test {values['test']}: expected shares with a sum below 1")
        return self._replace(**values)


class ClassSizes(NamedTuple):
    """Images of each class for each split, (C,) int64 each."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def plan_sizes(available: list[int], plan: SplitPlan, names: list[str]) -> ClassSizes:
    """Return the size of each class in each split, for numbers of available images.

    Raises:
        InputError: there are not enough images for the plan.
    """
    counts = np.array(available)
    if plan.profile == NATURAL:
        return _natural_sizes(counts, plan)
    val, test = (_requested(counts, requested) for requested in (plan.val, plan.test))
    return ClassSizes(np.array(train_sizes(counts - val - test, available, plan, names)), val, test)


def _requested(counts: np.ndarray, requested: float) -> np.ndarray:
    """Return the images to split off from each class: a share of them (at least one), or a number."""
    if isinstance(requested, float):
        return np.maximum(1, (requested * counts + EPSILON).astype(int))
    return np.full(len(counts), requested)


def _natural_sizes(counts: np.ndarray, plan: SplitPlan) -> ClassSizes:
    """Split every image. Val and test each get at least one image of a class, and so does train.

    A number is at most a third of the class. Classes with fewer than MIN_TO_SPLIT images are not split.
    """
    val, test = (_requested(counts, requested) for requested in (plan.val, plan.test))
    val, test = (
        split if isinstance(requested, float) else np.minimum(split, counts // MIN_TO_SPLIT)
        for split, requested in ((val, plan.val), (test, plan.test))
    )
    excess = np.maximum(0, val + test + 1 - counts)  # small classes with a large share
    val, test = np.where(val > test, val - excess, val), np.where(val > test, test, test - excess)
    enough = counts >= MIN_TO_SPLIT
    val, test = val * enough, test * enough
    return ClassSizes(counts - val - test, val, test)


def train_sizes(remaining: np.ndarray, available: list[int], plan: SplitPlan, names: list[str]) -> list[int]:
    """Return the training images of each class of a subset. Classes are ranked by remaining images, ties by label.

    Args:
        remaining: images of each class without those for val and test, (C,).
        available: all images of each class.

    Raises:
        InputError: there are not enough images for the plan.
    """
    if remaining.min() < 1:
        name, count = names[int(remaining.argmin())], available[int(remaining.argmin())]
        raise InputError(f"class {name}: {count} images, none left after --val {plan.val} and --test {plan.test}")
    order = np.argsort(-remaining, kind="stable")
    fractions = np.array(class_fractions(plan.profile, len(remaining), plan.imbalance))
    possible = int((remaining[order] / fractions + EPSILON).min())
    largest = possible if plan.largest is None else plan.largest
    if largest > possible:
        raise InputError(f"--largest {largest}: expected at most {possible} with these images, profile and imbalance")
    sizes = class_sizes(plan.profile, len(remaining), plan.imbalance, largest)
    if sizes[-1] < 1:
        raise InputError(
            f"--imbalance {plan.imbalance:g}: the smallest class would be empty; expected at most {largest}, the "
            f"images of the largest class"
        )
    by_label = np.empty(len(remaining), dtype=int)
    by_label[order] = sizes
    return by_label.tolist()
