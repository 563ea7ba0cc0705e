"""Tests of `sample_batch_positives`, which selects the positives of each row."""

import pytest
import torch

from moco.losses import in_batch_loss
from moco.losses.positives import RANDOM_INT_BOUND, sample_batch_positives
from tests import oracle
from tests.in_batch import D, N, assert_close, loops, seeded_generator
from tests.tiny import unit_vectors


def test_sampled_positives_match_floyds_algorithm(batch):
    """The pool of row i holds the other rows with its label, in order."""
    labels = batch["labels"].repeat(2)
    draws = torch.randint(RANDOM_INT_BOUND, (2 * N, 3), generator=seeded_generator())
    for i, (other, *drawn) in enumerate(sample_batch_positives(labels, draws).tolist()):
        pool = [j for j in range(2 * N) if labels[j] == labels[i] and j not in (i, other)]
        expected = [pool[o] for o in oracle.floyd_sample(len(pool), draws[i].tolist())]
        assert [j for j in drawn if j >= 0] == expected


def test_sampled_positives_are_distinct_and_uniform_over_the_class():
    """Sample 40 batches of five images at once. Each batch has its own classes, one of 6 rows and two of 2 rows."""
    num_batches, times = 40, 100
    half = 5 * num_batches
    labels = (torch.tensor([0, 1, 0, 0, 2]) + 3 * torch.arange(num_batches)[:, None]).flatten().repeat(2)
    in_large_class, row = labels % 3 == 0, torch.arange(2 * half)
    allowed = (labels[:, None] == labels) & (row[:, None] % half != row % half)
    seen = torch.zeros(2 * half, 2 * half)
    for draws in torch.randint(RANDOM_INT_BOUND, (times, 2 * half, 3), generator=seeded_generator()):
        chosen = sample_batch_positives(labels, draws)
        assert torch.equal(chosen[:, 0], (row + half) % (2 * half))
        assert (chosen[~in_large_class, 1:] == -1).all() and (
            chosen[in_large_class, 1:].sort(1).values.diff(dim=1) > 0
        ).all()
        assert allowed[row[in_large_class, None], chosen[in_large_class, 1:]].all()
        seen[row[in_large_class, None], chosen[in_large_class, 1:]] += 1
    # Sum over the batches: how often each pair of rows (5 images, 2 views) was sampled in 4000 trials.
    pair = seen.view(2, num_batches, 5, 2, num_batches, 5).diagonal(dim1=1, dim2=4).sum(-1).reshape(10, 10)
    allowed = torch.tensor([0, 1, 0, 0, 2]).repeat(2)
    allowed = (allowed[:, None] == allowed) & (torch.arange(10)[:, None] % 5 != torch.arange(10) % 5)
    assert not pair[~allowed].any()
    assert (pair[allowed] / (num_batches * times) - 3 / 4).abs().max() < 0.04  # six standard deviations


@pytest.mark.usefixtures("block")
def test_num_positive_one_below_class_size_matches_loops():
    """All rows have one label, and k is one less than the number of possible positives."""
    torch.manual_seed(0)
    batch, k = (unit_vectors(N, 2, D, dim=2), torch.zeros(N, dtype=torch.long)), 2 * N - 3
    draws = torch.randint(RANDOM_INT_BOUND, (2 * N, k), generator=seeded_generator()).tolist()
    no_targets = unit_vectors(0, D), torch.zeros(0, dtype=torch.long), 1
    assert_close(
        in_batch_loss(*batch, k, 0.3, generator=seeded_generator()),
        loops.loss(*batch, k, 0.3, *no_targets, "all", False, draws),
    )
