"""Samplers: which images an epoch contains and how often, independent of ranks and restarts."""

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


def test_shuffled_shows_every_image_once_and_drops_incomplete_batch():
    first, second = epochs(ShuffledBatches(50, 1, 10, seed=3), 0, 2)
    assert sorted(indices([first])) == sorted(indices([second])) == list(range(50))
    assert indices([first]) != indices([second])
    assert len(ShuffledBatches(50, 1, 16, seed=3)) == 3  # 2 images are dropped


@pytest.mark.parametrize("sampling", ["instance", "class-balanced"])
def test_incomplete_last_batch_is_kept_and_split_over_ranks(sampling, monkeypatch):
    """Of 15 images in batches of 8, the last batch has 7, or 6 with two processes."""
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
    assert [*chain(*joined)] == [*chain(*whole)][:14]  # image indices and draw numbers
    monkeypatch.undo()
    assert len(SAMPLERS[sampling](labels[:5], 1, 8, 0, True)) == 1  # a list smaller than a batch


def test_repeat_shows_every_image_that_many_times():
    (epoch,) = epochs(ShuffledBatches(5, 4, 10, seed=0), 0, 1)
    assert Counter(indices([epoch])) == {i: 4 for i in range(5)}


def test_class_aware_samples_four_images_of_each_class_per_cycle():
    run = epochs(ClassAwareBatches(LABELS, 1, 12, seed=0), 0, 3)
    sampled = LABELS[indices(run)].reshape(-1, 3, 4)  # cycles, visits, images
    assert (sampled == sampled[:, :, :1]).all(), "a visit mixes classes"
    assert all(sorted(cycle) == [0, 1, 2] for cycle in sampled[:, :, 0].tolist())
    assert len({tuple(cycle) for cycle in sampled[:, :, 0].tolist()}) > 1, "classes come in one order only"


def test_class_aware_shows_all_images_of_a_class_before_repeating():
    """This also holds across epochs: all 40 images of class 0, 4 per cycle, are seen in 10 cycles, or 2.5 epochs."""
    run = epochs(ClassAwareBatches(LABELS, 1, 12, seed=0), 0, 5)
    for label, size in enumerate(np.bincount(LABELS)):
        seen = [i for i in indices(run) if LABELS[i] == label]
        whole = len(seen) // size * size
        for start in range(0, whole, size):
            assert len(set(seen[start : start + size])) == size
    assert len([i for i in indices(run) if LABELS[i] == 0]) == 80


def test_class_aware_skips_class_without_images():
    labels = np.array([0] * 10 + [2] * 10)
    (epoch,) = epochs(ClassAwareBatches(labels, 1, 8, seed=0), 0, 1)
    assert Counter(labels[indices([epoch])].tolist()) == {0: 8, 2: 8}


MAKERS = {
    "shuffled": lambda seed: ShuffledBatches(50, 2, 12, seed),
    "class-aware": lambda seed: ClassAwareBatches(LABELS, 2, 12, seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_draws_are_numbered_across_epochs(make):
    run = epochs(make(0), 0, 3)
    assert [draw for epoch in run for batch in epoch for _, draw in batch] == list(range(3 * 8 * 12))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_epoch_does_not_depend_on_earlier_epochs(make):
    assert epochs(make(0), 0, 4)[2:] == epochs(make(0), 2, 4)
    assert epochs(make(0), 0, 1) != epochs(make(1), 0, 1)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_ranks_together_sample_same_images_as_one_process(make, monkeypatch):
    (single,) = epochs(make(0), 0, 1)
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(epochs(make(0), 0, 1)[0])
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == single


def test_batch_larger_than_epoch_is_refused():
    refusal(lambda: ShuffledBatches(50, 1, 64, seed=0), "--batch-size", 64, 50)
