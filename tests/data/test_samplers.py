"""Which images an epoch shows, how often, and that neither ranks nor restarts change it."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from imagenet_inat.samplers import SAMPLERS, ClassAwareBatches, ShuffledBatches
from tests.refusals import refusal
from utils import distributed

LABELS = np.array([0] * 40 + [1] * 7 + [2] * 3)


def epochs(batches, first: int, last: int) -> list[list[list[tuple[int, int]]]]:
    out = []
    for epoch in range(first, last):
        batches.set_epoch(epoch)
        out.append(list(batches))
    return out


def indices(run) -> list[int]:
    return [index for epoch in run for batch in epoch for index, _ in batch]


def test_shuffled_shows_every_image_once_an_epoch_and_drops_the_rest():
    first, second = epochs(ShuffledBatches(50, 1, 10, seed=3), 0, 2)
    assert sorted(indices([first])) == sorted(indices([second])) == list(range(50))
    assert indices([first]) != indices([second])
    assert len(ShuffledBatches(50, 1, 16, seed=3)) == 3  # 2 images are left out


@pytest.mark.parametrize("sampling", ["instance", "class-balanced"])
def test_the_last_incomplete_batch_is_kept_and_shared_by_the_ranks(sampling, monkeypatch):
    """15 images in batches of 8: the 7 that are left, or 6 of them for two processes."""
    labels = np.array([0] * 10 + [1] * 5)
    (whole,) = epochs(SAMPLERS[sampling](labels, 1, 8, 0, True), 2, 3)
    assert [len(batch) for batch in whole] == [8, 7]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares += epochs(SAMPLERS[sampling](labels, 1, 8, 0, True), 2, 3)
    joined = [one + other for one, other in zip(*shares, strict=True)]
    assert [len(batch) for batch in joined] == [8, 6]
    assert [*chain(*joined)] == [*chain(*whole)][:14]  # numbers of the draws too
    monkeypatch.undo()
    assert len(SAMPLERS[sampling](labels[:5], 1, 8, 0, True)) == 1  # of a list smaller than a batch


def test_repeat_shows_every_image_that_often():
    (epoch,) = epochs(ShuffledBatches(5, 4, 10, seed=0), 0, 1)
    assert Counter(indices([epoch])) == {i: 4 for i in range(5)}


def test_class_aware_draws_four_images_of_a_class_and_every_class_once_a_cycle():
    run = epochs(ClassAwareBatches(LABELS, 1, 12, seed=0), 0, 3)
    drawn = LABELS[indices(run)].reshape(-1, 3, 4)  # cycles, visits, images
    assert (drawn == drawn[:, :, :1]).all(), "a visit mixes classes"
    assert all(sorted(cycle) == [0, 1, 2] for cycle in drawn[:, :, 0].tolist())
    assert len({tuple(cycle) for cycle in drawn[:, :, 0].tolist()}) > 1, "classes come in one order only"


def test_class_aware_goes_through_a_class_before_it_repeats_an_image():
    """Also across epochs: 40 images of class 0, 4 a cycle, are all seen in 10 cycles = 2.5 epochs."""
    run = epochs(ClassAwareBatches(LABELS, 1, 12, seed=0), 0, 5)
    for label, size in enumerate(np.bincount(LABELS)):
        seen = [i for i in indices(run) if LABELS[i] == label]
        whole = len(seen) // size * size
        for start in range(0, whole, size):
            assert len(set(seen[start : start + size])) == size
    assert len([i for i in indices(run) if LABELS[i] == 0]) == 80


def test_class_aware_leaves_out_a_class_without_images():
    labels = np.array([0] * 10 + [2] * 10)
    (epoch,) = epochs(ClassAwareBatches(labels, 1, 8, seed=0), 0, 1)
    assert Counter(labels[indices([epoch])].tolist()) == {0: 8, 2: 8}


MADE = {
    "shuffled": lambda seed: ShuffledBatches(50, 2, 12, seed),
    "class-aware": lambda seed: ClassAwareBatches(LABELS, 2, 12, seed),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_draws_are_numbered_through_the_run(make):
    run = epochs(make(0), 0, 3)
    assert [draw for epoch in run for batch in epoch for _, draw in batch] == list(range(3 * 8 * 12))


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_an_epoch_does_not_depend_on_the_ones_before(make):
    assert epochs(make(0), 0, 4)[2:] == epochs(make(0), 2, 4)
    assert epochs(make(0), 0, 1) != epochs(make(1), 0, 1)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_ranks_together_draw_what_one_process_would(make, monkeypatch):
    (alone,) = epochs(make(0), 0, 1)
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(epochs(make(0), 0, 1)[0])
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_a_batch_larger_than_an_epoch_is_refused():
    refusal(lambda: ShuffledBatches(50, 1, 64, seed=0), "--batch-size", 64, 50)
