"""Positives are sampled uniformly without replacement; all are used if there are fewer than k."""

from itertools import combinations

import torch
from scipy.stats import chisquare

from moco.losses.positives import sample_offsets, sample_positives


def test_every_subset_is_sampled_equally_often():
    """3 of 6 have 20 subsets. The seed is fixed, so the test cannot fail by chance."""
    rounds = 20_000
    draws = torch.randint(2**62, (rounds, 3))
    offset = sample_offsets(torch.full((rounds,), 6), draws)
    assert (offset >= 0).all() and (offset < 6).all()
    subsets = [tuple(sorted(row)) for row in offset.tolist()]
    counts = [subsets.count(subset) for subset in combinations(range(6), 3)]
    assert sum(counts) == rounds  # every draw is a subset of three different offsets
    assert chisquare(counts).pvalue > 0.01


def test_all_are_sampled_when_fewer_than_k():
    sizes = torch.tensor([0, 1, 2, 5])
    offset = sample_offsets(sizes, torch.randint(2**62, (4, 6)))
    for size, row in zip(sizes.tolist(), offset, strict=True):
        assert sorted(row[row < size].tolist()) == list(range(size))


def test_sampled_keys_have_the_anchors_label():
    """With one-hot keys, the sum of the positives shows which keys were sampled."""
    queue, queue_labels = torch.eye(60), torch.randint(-1, 4, (60,))
    labels = torch.randint(0, 4, (500,))
    queue_positives, from_targets = sample_positives(queue, queue_labels, labels, torch.randint(2**62, (500, 6)))
    same = (queue_labels[None] == labels[:, None]).float()
    assert (queue_positives.vector <= same).all(), "a positive of another class, or one sampled twice"
    assert torch.equal(queue_positives.vector.sum(1), same.sum(1).clamp(max=6))
    assert torch.equal(queue_positives.count, queue_positives.vector.sum(1))
    assert from_targets.count.sum() == 0


def test_target_copies_are_sampled_in_proportion():
    """Sample 3 of 4 queue entries and 2 target copies: on average 3·2/6 = 1 of them is a target copy."""
    rounds = 20_000
    labels = torch.zeros(rounds, dtype=torch.long)
    target = torch.zeros(rounds, 4)
    draws = torch.randint(2**62, (rounds, 3))
    queue_positives, from_targets = sample_positives(
        torch.eye(4), torch.zeros(4, dtype=torch.long), labels, draws, target, copies=2
    )
    assert torch.equal(queue_positives.count + from_targets.count, torch.full((rounds,), 3.0))
    expected = [rounds * p for p in (4 / 20, 12 / 20, 4 / 20)]  # hypergeometric: 0, 1, 2 targets
    assert chisquare([(from_targets.count == n).sum() for n in range(3)], expected).pvalue > 0.01
