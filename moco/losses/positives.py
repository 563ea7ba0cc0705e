"""Selection of an anchor's positives in addition to its own key: one pure function per strategy."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_DRAW = 2**62  # exclusive upper bound of the random numbers passed to `draw_offsets`


class PositiveSum(NamedTuple):
    """The positives of each anchor: their sum, vector (N, D), and their number, count (N,) float, possibly 0."""

    vector: Tensor
    count: Tensor


class Anchors(NamedTuple):
    """The anchors and the entries that their positives are chosen from.

    Attributes:
        queue, queue_labels, labels, target: see `sample_positives`; target is None in KCL.
        draw: draw(k) returns (N, k) random numbers, the same numbers for the same k.
    """

    queue: Tensor
    queue_labels: Tensor
    labels: Tensor
    draw: Callable[[int], Tensor]
    target: Tensor | None


Chosen = tuple[PositiveSum, PositiveSum | None]  # positives from the queue; positives from the targets, None in KCL
Choice = Callable[[Anchors], Chosen]


def choices(num_positive: int, queue_length: int, supervised: bool, sep_t: bool, copies: int) -> tuple[Choice, Choice]:
    """Return the strategies of KCL and of TSC for these arguments of `moco.builder.KCL` (copies: tr)."""
    if not supervised:
        kcl = own_key_alone
    elif num_positive == 0:
        kcl = all_of_the_class
    else:
        kcl = partial(drawn_from_queue, k=min(num_positive, queue_length))
    if sep_t or num_positive == 0:
        return kcl, partial(target_always, copies=copies, others=kcl)
    k = min(num_positive, queue_length + copies) if supervised else 0
    return kcl, partial(drawn_from_queue_and_targets, k=k, copies=copies)


def own_key_alone(anchors: Anchors) -> Chosen:
    """MoCo: choose no positive other than the own key."""
    size, dim = len(anchors.labels), len(anchors.queue)
    return PositiveSum(anchors.queue.new_zeros(size, dim), anchors.queue.new_zeros(size)), None


def drawn_from_queue(anchors: Anchors, k: int) -> Chosen:
    """KCL: sample k entries of the anchor's class from the queue."""
    drawn, _ = sample_positives(*anchors[:3], anchors.draw(k))
    return drawn, None


def all_of_the_class(anchors: Anchors) -> Chosen:
    """SupCon: choose all entries of the anchor's class in the queue."""
    return all_positives(*anchors[:3]), None


def drawn_from_queue_and_targets(anchors: Anchors, k: int, copies: int) -> Chosen:
    """TSC without ``--sep_t``: sample k from one pool, the anchor's class in the queue and the copies of its target."""
    return sample_positives(*anchors[:3], anchors.draw(k), anchors.target, copies)


def target_always(anchors: Anchors, copies: int, others: Choice) -> Chosen:
    """TSC with ``--sep_t``, or k = 0: choose all copies of the target, and what `others` chooses from the queue."""
    count = anchors.target.new_full(anchors.labels.shape, copies)  # (N,)
    return others(anchors)[0], PositiveSum(copies * anchors.target, count)


def draw_offsets(size: Tensor, draws: Tensor) -> Tensor:
    """Draw k distinct offsets from range(size_i) for every anchor i, uniformly.

    Floyd's sampling (Bentley and Floyd 1987, "A sample of brilliance"): k rounds with
    one random number each and no rejection, so every anchor takes the same time for
    any class size.

    Args:
        size: (N,) int64, number of entries that each anchor can draw from, possibly 0.
        draws: (N, k) int64, random non-negative integers much larger than any size.

    Returns:
        (N, k) int64. An anchor with fewer than k entries draws all of them; its
        remaining slots contain offsets >= size_i, which stand for no entry.
    """
    k = draws.shape[1]
    first = (size - k).clamp(min=0)  # (N,) last offset of the range in the first round
    offset = torch.full_like(draws, -1)  # (N, k)
    for slot in range(k):
        last = first + slot  # (N,) the range grows by one in each round
        pick = draws[:, slot] % (last + 1)  # (N,)
        seen = (offset[:, :slot] == pick[:, None]).any(dim=1)  # (N,)
        offset[:, slot] = torch.where(seen, last, pick)
    return offset


def sample_positives(
    queue: Tensor,
    queue_labels: Tensor,
    labels: Tensor,
    draws: Tensor,
    target: Tensor | None = None,
    copies: int = 0,
) -> tuple[PositiveSum, PositiveSum]:
    """Sample k positives per anchor, without replacement, from its pool.

    The pool contains the queue entries of the anchor's class and `copies` copies of the anchor's target. If it has
    fewer than k members, all are used (KCL, ICLR 2021, section 3.3).

    Args:
        queue: (D, Q) past keys. queue_labels: (Q,) int64, -1 for empty columns.
        labels: (N,) int64, classes of the anchors, all >= 0.
        draws: (N, k) int64 random numbers, see `draw_offsets`.
        target: (N, D), the target assigned to each anchor's class; required if copies > 0.

    Returns:
        The positives from the queue and the positives from the targets.
    """
    order = queue_labels.argsort(stable=True)  # (Q,) columns, grouped by label
    sorted_labels = queue_labels[order]  # (Q,)
    start = torch.searchsorted(sorted_labels, labels)  # (N,)
    in_queue = torch.searchsorted(sorted_labels, labels, right=True) - start  # (N,)

    offset = draw_offsets(in_queue + copies, draws)  # (N, k): the queue's entries, then the target copies
    is_key = offset < in_queue[:, None]  # (N, k)
    is_target = ~is_key & (offset < (in_queue + copies)[:, None])  # (N, k)

    columns = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (N, k)
    weight = is_key.to(queue.dtype)  # (N, k)
    keys = torch.einsum("dnk,nk->nd", queue[:, columns], weight)  # (N, D)
    from_queue = PositiveSum(keys, weight.sum(1))

    num_target = is_target.sum(1).to(queue.dtype)  # (N,)
    if target is None:
        target = torch.zeros_like(keys)
    return from_queue, PositiveSum(num_target[:, None] * target, num_target)


def all_positives(queue: Tensor, queue_labels: Tensor, labels: Tensor) -> PositiveSum:
    """Return all queue entries of each anchor's class.

    Arguments and shapes as in `sample_positives`. Allocates a dense (N, Q) matrix.
    """
    same = (labels[:, None] == queue_labels[None, :]).to(queue.dtype)  # (N, Q)
    return PositiveSum(same @ queue.T, same.sum(1))


def view_and_drawn(labels: Tensor, draws: Tensor) -> Tensor:
    """Return for each row its other view and k sampled rows with its label, in a batch of 2M rows.

    Rows i and i + M are two views of one image or target. The k rows are sampled without replacement from the rows
    of the label, except row i and its other view. `draw_offsets` selects them by their position in row order.

    Args:
        labels: (2M,) int64. draws: (2M, k) int64 random numbers, see `draw_offsets`.

    Returns:
        (2M, 1 + k) int64 row indices, the other view first; -1 where a class has too few rows.
    """
    order = labels.argsort(stable=True)  # (2M,) rows, grouped by label
    sorted_labels = labels[order]  # (2M,)
    start = torch.searchsorted(sorted_labels, labels)  # (2M,)
    size = torch.searchsorted(sorted_labels, labels, right=True) - start - 2  # (2M,) without row i and its other view
    place = order.argsort() - start  # (2M,) position of each row in its class
    other = torch.arange(len(labels), device=labels.device).roll(len(labels) // 2)  # (2M,)
    offset = draw_offsets(size, draws)  # (2M, k)
    drawn = offset < size[:, None]  # (2M, k)
    for skipped in (torch.minimum(place, place[other]), torch.maximum(place, place[other])):
        offset = offset + (offset >= skipped[:, None])
    rows = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (2M, k)
    return torch.cat([other[:, None], rows.where(drawn, -1)], dim=1)
