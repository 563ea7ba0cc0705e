"""`view_and_drawn`: which rows of the batch are a row's positives."""

import pytest
import torch

from moco.losses import in_batch_loss
from moco.losses.positives import LARGEST_DRAW, view_and_drawn
from tests import oracle
from tests.in_batch import D, N, close, loops, seeded
from tests.tiny import unit

pytestmark = pytest.mark.usefixtures("block")


def test_the_draws_are_those_of_floyds_algorithm(batch):
    """Row i's pool are the other rows of its label, in their order."""
    labels = batch["labels"].repeat(2)
    draws = torch.randint(LARGEST_DRAW, (2 * N, 3), generator=seeded())
    for i, (other, *drawn) in enumerate(view_and_drawn(labels, draws).tolist()):
        pool = [j for j in range(2 * N) if labels[j] == labels[i] and j not in (i, other)]
        expected = [pool[o] for o in oracle.draw(len(pool), draws[i].tolist())]
        assert [j for j in drawn if j >= 0] == expected


def test_draws_are_distinct_uniform_of_the_class_and_neither_the_row_nor_its_other_view():
    labels = torch.tensor([0, 1, 0, 0, 2]).repeat(2)  # class 0 has 6 rows, 1 and 2 have two each
    times, half = 4000, 5
    seen = torch.zeros(10, 10)
    for draws in torch.randint(LARGEST_DRAW, (times, 10, 3), generator=seeded()):
        chosen = view_and_drawn(labels, draws)
        assert torch.equal(chosen[:, 0], (torch.arange(10) + half) % 10)
        for i, row in enumerate(chosen[:, 1:].tolist()):
            assert row == ([-1] * 3 if labels[i] else row) and (labels[i] or len(set(row)) == 3)
            seen[i, [j for j in row if j >= 0]] += 1
    allowed = (labels[:, None] == labels) & ~(torch.arange(10)[:, None] % half == torch.arange(10) % half)
    assert not seen[~allowed].any()
    assert (seen[allowed] / times - 3 / 4).abs().max() < 0.04  # six standard deviations


def test_one_positive_less_than_there_are_is_still_drawn():
    """All rows of one label, and k one short of the whole class."""
    torch.manual_seed(0)
    batch, k = (unit(N, 2, D, dim=2), torch.zeros(N, dtype=torch.long)), 2 * N - 3
    draws = torch.randint(LARGEST_DRAW, (2 * N, k), generator=seeded()).tolist()
    none = unit(0, D), torch.zeros(0, dtype=torch.long), 1
    close(in_batch_loss(*batch, k, 0.3, generator=seeded()), loops.loss(*batch, k, 0.3, *none, "all", False, draws))
