"""`view_and_drawn`: which rows of the batch are a row's positives."""

import pytest
import torch

from moco.losses import in_batch_loss
from moco.losses.positives import LARGEST_DRAW, view_and_drawn
from tests import oracle
from tests.in_batch import D, N, close, loops, seeded
from tests.tiny import unit


def test_the_draws_are_those_of_floyds_algorithm(batch):
    """Row i's pool are the other rows of its label, in their order."""
    labels = batch["labels"].repeat(2)
    draws = torch.randint(LARGEST_DRAW, (2 * N, 3), generator=seeded())
    for i, (other, *drawn) in enumerate(view_and_drawn(labels, draws).tolist()):
        pool = [j for j in range(2 * N) if labels[j] == labels[i] and j not in (i, other)]
        expected = [pool[o] for o in oracle.draw(len(pool), draws[i].tolist())]
        assert [j for j in drawn if j >= 0] == expected


def test_draws_are_distinct_uniform_of_the_class_and_neither_the_row_nor_its_other_view():
    """Forty batches of five images at a time, each with its own classes: one of 6 rows and two of two rows."""
    together, times = 40, 100
    half = 5 * together
    labels = (torch.tensor([0, 1, 0, 0, 2]) + 3 * torch.arange(together)[:, None]).flatten().repeat(2)
    large, row = labels % 3 == 0, torch.arange(2 * half)
    allowed = (labels[:, None] == labels) & (row[:, None] % half != row % half)
    seen = torch.zeros(2 * half, 2 * half)
    for draws in torch.randint(LARGEST_DRAW, (times, 2 * half, 3), generator=seeded()):
        chosen = view_and_drawn(labels, draws)
        assert torch.equal(chosen[:, 0], (row + half) % (2 * half))
        assert (chosen[~large, 1:] == -1).all() and (chosen[large, 1:].sort(1).values.diff(dim=1) > 0).all()
        assert allowed[row[large, None], chosen[large, 1:]].all()
        seen[row[large, None], chosen[large, 1:]] += 1
    # The same pair of rows of each batch: 5 images in 2 views, 4000 times.
    pair = seen.view(2, together, 5, 2, together, 5).diagonal(dim1=1, dim2=4).sum(-1).reshape(10, 10)
    allowed = torch.tensor([0, 1, 0, 0, 2]).repeat(2)
    allowed = (allowed[:, None] == allowed) & (torch.arange(10)[:, None] % 5 != torch.arange(10) % 5)
    assert not pair[~allowed].any()
    assert (pair[allowed] / (together * times) - 3 / 4).abs().max() < 0.04  # six standard deviations


@pytest.mark.usefixtures("block")
def test_one_positive_less_than_there_are_is_still_drawn():
    """All rows of one label, and k one short of the whole class."""
    torch.manual_seed(0)
    batch, k = (unit(N, 2, D, dim=2), torch.zeros(N, dtype=torch.long)), 2 * N - 3
    draws = torch.randint(LARGEST_DRAW, (2 * N, k), generator=seeded()).tolist()
    none = unit(0, D), torch.zeros(0, dtype=torch.long), 1
    close(in_batch_loss(*batch, k, 0.3, generator=seeded()), loops.loss(*batch, k, 0.3, *none, "all", False, draws))
