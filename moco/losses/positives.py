"""Selection of an anchor's positives, in addition to its own key or other view: pure functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

RANDOM_INT_BOUND = 2**62  # exclusive upper bound of the random integers passed to `sample_offsets`


class PositiveSum(NamedTuple):
    """The positives of each anchor: their sum, vector (N, D), and their number, count (N,) float, possibly 0."""

    vector: Tensor
    count: Tensor


def sample_offsets(size: Tensor, random_ints: Tensor) -> Tensor:
    """Sample k distinct offsets from range(size_i) for every anchor i, uniformly.

    Floyd's sampling (Bentley and Floyd 1987, "A sample of brilliance"): k rounds with
    one random integer each and no rejection, so every anchor takes the same time for
    any class size.

    Args:
        size: (N,) int64, number of entries to sample from for each anchor, possibly 0.
        random_ints: (N, k) int64, random non-negative integers, uniform over a range much larger than any size.

    Returns:
        (N, k) int64. An anchor with fewer than k entries gets all of them; its
        remaining slots contain offsets >= size_i, which stand for no entry.
    """
    k = random_ints.shape[1]
    first = (size - k).clamp(min=0)  # (N,) last offset of the range in the first round
    offset = torch.full_like(random_ints, -1)  # (N, k)
    for slot in range(k):
        last = first + slot  # (N,) the range grows by one in each round
        pick = random_ints[:, slot] % (last + 1)  # (N,)
        seen = (offset[:, :slot] == pick[:, None]).any(dim=1)  # (N,)
        offset[:, slot] = torch.where(seen, last, pick)
    return offset


def find_classes(pool_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries of a pool (Q,) grouped by label, and for each of N labels the start and size of its group."""
    order = pool_labels.argsort(stable=True)  # (Q,) entries, grouped by label
    sorted_labels = pool_labels[order]  # (Q,)
    start = torch.searchsorted(sorted_labels, labels)  # (N,)
    return order, start, torch.searchsorted(sorted_labels, labels, right=True) - start


def sample_positives(
    queue: Tensor,
    queue_labels: Tensor,
    labels: Tensor,
    random_ints: Tensor,
    target: Tensor | None = None,
    copies: int = 0,
) -> tuple[PositiveSum, PositiveSum]:
    """Sample k positives per anchor, without replacement, from its pool.

    The pool contains the queue entries of the anchor's class and `copies` copies of the anchor's target. If it has
    fewer than k members, all are used (KCL, ICLR 2021, section 3.3).

    Args:
        queue: (D, Q) past keys. queue_labels: (Q,) int64, -1 for empty columns.
        labels: (N,) int64, classes of the anchors, all >= 0.
        random_ints: (N, k) int64, see `sample_offsets`.
        target: (N, D), the target assigned to each anchor's class; required if copies > 0.

    Returns:
        The positives from the queue and the positives from the targets.
    """
    order, start, in_queue = find_classes(queue_labels, labels)  # (Q,), (N,), (N,)
    offset = sample_offsets(in_queue + copies, random_ints)  # (N, k): the queue's entries, then the target copies
    from_queue = sum_columns(queue, columns_at(order, start, in_queue, offset))
    is_target = (offset >= in_queue[:, None]) & (offset < (in_queue + copies)[:, None])  # (N, k)
    num_target = is_target.sum(1).to(queue.dtype)  # (N,)
    if target is None:
        target = torch.zeros_like(from_queue.vector)
    return from_queue, PositiveSum(num_target[:, None] * target, num_target)


def columns_at(order: Tensor, start: Tensor, size: Tensor, offset: Tensor) -> Tensor:
    """Return the queue columns (N, k) at offsets in the groups of `find_classes`. Q stands for no entry."""
    columns = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (N, k)
    return columns.masked_fill(offset >= size[:, None], len(order))


def sum_columns(queue: Tensor, columns: Tensor) -> PositiveSum:
    """Return the positives of each anchor from their columns (N, k), see `columns_at`. queue: (D, Q)."""
    exists = (columns < queue.shape[1]).to(queue.dtype)  # (N, k)
    keys = queue[:, columns.clamp(max=queue.shape[1] - 1)]  # (D, N, k)
    return PositiveSum(torch.einsum("dnk,nk->nd", keys, exists), exists.sum(1))


def all_positives(queue: Tensor, queue_labels: Tensor, labels: Tensor) -> PositiveSum:
    """Return all queue entries of each anchor's class.

    Arguments and shapes as in `sample_positives`. Allocates a dense (N, Q) matrix.
    """
    same = (labels[:, None] == queue_labels[None, :]).to(queue.dtype)  # (N, Q)
    return PositiveSum(same @ queue.T, same.sum(1))


def sample_batch_positives(labels: Tensor, random_ints: Tensor) -> Tensor:
    """Return the positives of each row in a batch of 2M rows: its other view, and k sampled rows with its label.

    Rows i and i + M are two views of one image or target. The k rows are sampled without replacement from the rows
    of the label, except row i and its other view. `sample_offsets` selects them by their position in row order.

    Args:
        labels: (2M,) int64. random_ints: (2M, k) int64, see `sample_offsets`.

    Returns:
        (2M, 1 + k) int64 row indices, the other view first; -1 where a class has too few rows.
    """
    order, start, size = find_classes(labels, labels)  # (2M,) each
    size = size - 2  # (2M,) without row i and its other view
    rank = order.argsort() - start  # (2M,) position of each row in its class
    other = torch.arange(len(labels), device=labels.device).roll(len(labels) // 2)  # (2M,)
    offset = sample_offsets(size, random_ints)  # (2M, k)
    exists = offset < size[:, None]  # (2M, k)
    for skipped in (torch.minimum(rank, rank[other]), torch.maximum(rank, rank[other])):
        offset = offset + (offset >= skipped[:, None])
    rows = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (2M, k)
    return torch.cat([other[:, None], rows.where(exists, -1)], dim=1)
