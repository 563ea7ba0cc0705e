"""Which entries are an anchor's positives besides its own key: pure functions, one for each way to choose."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_DRAW = 2**62  # the random numbers that `draw_offsets` takes are below it


class PositiveSum(NamedTuple):
    """The positives of each anchor: their sum, vector (N, D), and their number, count (N,) float, which may be 0."""

    vector: Tensor
    count: Tensor


class Anchors(NamedTuple):
    """Whose positives are chosen, and from what: `sample_positives` says what each is.

    draw: draw(k) gives (N, k) random numbers, the same for the same k. target: None in KCL.
    """

    queue: Tensor
    queue_labels: Tensor
    labels: Tensor
    draw: Callable[[int], Tensor]
    target: Tensor | None


Chosen = tuple[PositiveSum, PositiveSum | None]  # from the queue; from the targets, None in KCL
Choice = Callable[[Anchors], Chosen]


def choices(num_positive: int, queue_length: int, supervised: bool, sep_t: bool, copies: int) -> tuple[Choice, Choice]:
    """How KCL and how TSC chooses positives, by the flags (`KCL`'s, copies: its tr)."""
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
    """MoCo: no other key."""
    size, dim = len(anchors.labels), len(anchors.queue)
    return PositiveSum(anchors.queue.new_zeros(size, dim), anchors.queue.new_zeros(size)), None


def drawn_from_queue(anchors: Anchors, k: int) -> Chosen:
    """KCL: k of the anchor's class in the queue."""
    drawn, _ = sample_positives(*anchors[:3], anchors.draw(k))
    return drawn, None


def all_of_the_class(anchors: Anchors) -> Chosen:
    """SupCon: all of the anchor's class in the queue."""
    return all_positives(*anchors[:3]), None


def drawn_from_queue_and_targets(anchors: Anchors, k: int, copies: int) -> Chosen:
    """TSC without ``--sep_t``: k of one pool, the anchor's class in the queue and the copies of its target."""
    return sample_positives(*anchors[:3], anchors.draw(k), anchors.target, copies)


def target_always(anchors: Anchors, copies: int, others: Choice) -> Chosen:
    """TSC with ``--sep_t``, or k = 0: all copies of the target, besides what `others` chooses from the queue."""
    count = anchors.target.new_full(anchors.labels.shape, copies)  # (N,)
    return others(anchors)[0], PositiveSum(copies * anchors.target, count)


def draw_offsets(size: Tensor, draws: Tensor) -> Tensor:
    """Draw k distinct offsets out of range(size_i) for every anchor i, uniformly.

    Floyd's sampling (Bentley and Floyd 1987, "A sample of brilliance"): k rounds,
    one random number each, no rejection, so every anchor does the same work
    whatever the size of its class.

    Args:
        size: (N,) int64, how many entries each anchor may draw from; may be 0.
        draws: (N, k) int64, random non-negative integers far larger than any size.

    Returns:
        (N, k) int64. An anchor with fewer than k entries draws all of them, and
        the slots left over hold offsets >= size_i, which are nobody's.
    """
    k = draws.shape[1]
    first = (size - k).clamp(min=0)  # (N,) the last offset of the first round's range
    offset = torch.full_like(draws, -1)  # (N, k)
    for slot in range(k):
        last = first + slot  # (N,) the range grows by one each round
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
    """Draw k positives per anchor, without replacement, from its pool.

    The pool is the queue's entries of the anchor's class and `copies` of the anchor's target. If it holds fewer
    than k, all of it is taken (KCL, ICLR 2021, section 3.3).

    Args:
        queue: (D, Q) past keys. queue_labels: (Q,) int64, -1 where still empty.
        labels: (N,) int64, the anchors' classes, all >= 0.
        draws: (N, k) int64 random numbers, see `draw_offsets`.
        target: (N, D) the target assigned to each anchor's class; needed for copies.

    Returns:
        The positives drawn from the queue and those drawn from the targets.
    """
    order = queue_labels.argsort(stable=True)  # (Q,) columns, equal labels side by side
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
    """Every queue entry of the anchor's class.

    Args and shapes as in `sample_positives`. This one is dense: (N, Q) in memory.
    """
    same = (labels[:, None] == queue_labels[None, :]).to(queue.dtype)  # (N, Q)
    return PositiveSum(same @ queue.T, same.sum(1))


def view_and_drawn(labels: Tensor, draws: Tensor) -> Tensor:
    """In a batch whose rows i and i + M are two views of one thing: i's other view, and k drawn rows of its label.

    They are drawn without replacement from those that are neither row i nor its other view; in their order,
    `draw_offsets` says which.

    Args:
        labels: (2M,) int64. draws: (2M, k) int64 random numbers, see `draw_offsets`.

    Returns:
        (2M, 1 + k) int64 rows, first the other view; -1 for each that a class is short of.
    """
    order = labels.argsort(stable=True)  # (2M,) rows, equal labels side by side
    sorted_labels = labels[order]  # (2M,)
    start = torch.searchsorted(sorted_labels, labels)  # (2M,)
    size = torch.searchsorted(sorted_labels, labels, right=True) - start - 2  # (2M,) without the two
    place = order.argsort() - start  # (2M,) of each row in its class
    other = torch.arange(len(labels), device=labels.device).roll(len(labels) // 2)  # (2M,)
    offset = draw_offsets(size, draws)  # (2M, k)
    drawn = offset < size[:, None]  # (2M, k)
    for skipped in (torch.minimum(place, place[other]), torch.maximum(place, place[other])):
        offset = offset + (offset >= skipped[:, None])
    rows = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (2M, k)
    return torch.cat([other[:, None], rows.where(drawn, -1)], dim=1)
