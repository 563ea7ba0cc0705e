"""Positives are drawn uniformly and without replacement, and all of them when there are too few."""

from itertools import combinations

import torch
from scipy.stats import chisquare

from moco.losses.positives import draw_offsets, sample_positives


def test_every_subset_is_equally_likely():
    """3 of 6: 20 subsets. The seed is fixed, so the p-value is one number, not a chance of failing."""
    rounds = 20_000
    draws = torch.randint(2**62, (rounds, 3))
    offset = draw_offsets(torch.full((rounds,), 6), draws)
    assert (offset >= 0).all() and (offset < 6).all()
    subsets = [tuple(sorted(row)) for row in offset.tolist()]
    counts = [subsets.count(subset) for subset in combinations(range(6), 3)]
    assert sum(counts) == rounds  # every draw is a subset of three different offsets
    assert chisquare(counts).pvalue > 0.01


def test_takes_all_when_there_are_fewer_than_k():
    sizes = torch.tensor([0, 1, 2, 5])
    offset = draw_offsets(sizes, torch.randint(2**62, (4, 6)))
    for size, row in zip(sizes.tolist(), offset, strict=True):
        assert sorted(row[row < size].tolist()) == list(range(size))


def test_drawn_columns_carry_the_anchors_label():
    """With one-hot 'keys' the sum of the positives shows which columns were drawn."""
    queue, queue_labels = torch.eye(60), torch.randint(-1, 4, (60,))
    labels = torch.randint(0, 4, (500,))
    drawn, from_targets = sample_positives(queue, queue_labels, labels, torch.randint(2**62, (500, 6)))
    same = (queue_labels[None] == labels[:, None]).float()
    assert (drawn.vector <= same).all(), "a positive of another class, or one drawn twice"
    assert torch.equal(drawn.vector.sum(1), same.sum(1).clamp(max=6))
    assert torch.equal(drawn.count, drawn.vector.sum(1))
    assert from_targets.count.sum() == 0


def test_target_copies_are_drawn_in_proportion():
    """4 queue entries and 2 copies of the target, 3 drawn: a target is in a draw 3·2/6 = 1 time on average."""
    rounds = 20_000
    labels = torch.zeros(rounds, dtype=torch.long)
    target = torch.zeros(rounds, 4)
    draws = torch.randint(2**62, (rounds, 3))
    drawn, from_targets = sample_positives(
        torch.eye(4), torch.zeros(4, dtype=torch.long), labels, draws, target, copies=2
    )
    assert torch.equal(drawn.count + from_targets.count, torch.full((rounds,), 3.0))
    expected = [rounds * p for p in (4 / 20, 12 / 20, 4 / 20)]  # hypergeometric: 0, 1, 2 targets
    assert chisquare([(from_targets.count == n).sum() for n in range(3)], expected).pvalue > 0.01
