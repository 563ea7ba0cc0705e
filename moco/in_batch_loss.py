"""The loss of contrast inside the batch: SupCon, KCL and TSC without a queue, as on CIFAR.

Letters: N images, D feature dimension, C targets, r copies of each, k drawn positives.
The batch has R = 2(N + C·r) rows, as the release appends C·r target rows to each of the two
views, and U = 2N + C different vectors: the copies of a target differ in what they draw, not
in their logits. So all that is wide is made of U columns, with the number of copies of each.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from moco.positives import LARGEST_DRAW, view_and_drawn
from utils.randomness import sent

# Logits made at a time: on the CPU what stays in the cache, on a GPU what keeps it busy.
LOGITS = {"cpu": 2**18, "cuda": 2**24}
ANCHORS = ("all", "targets")
Block = tuple[slice, Tensor | None]  # the place of some anchors, and the columns of their positives


class Rows(NamedTuple):
    """The different vectors: view 1's N images, view 2's N, C targets. copies: how often each stands in the batch."""

    vector: Tensor  # (U, D)
    label: Tensor  # (U,)
    copies: Tensor  # (U,), in the vectors' dtype


def in_batch_loss(
    views: Tensor,
    labels: Tensor,
    num_positive: int = 0,
    temperature: float = 0.07,
    *,
    targets: Tensor | None = None,
    target_class: Tensor | None = None,
    target_repeat: int = 1,
    anchors: str = "all",
    unbiased: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """SupCon (num_positive 0), KCL, and TSC as the release has it on CIFAR: the mean over the anchors i of ::

        - 1/|P_i| sum_{p in P_i} log( exp(x_i·x_p / temperature) / sum_j exp(x_i·x_j / temperature) )

    Rows: view 1's images, r copies of target 0, of target 1 ..., then the same of view 2; j: all but i. P_i: i's
    other view, and k of the other rows of its label, drawn without replacement (all if there are fewer, or k = 0).

    Args:
        views: (N, 2, D) unit vectors. labels: (N,) integers. num_positive: k >= 0. temperature: > 0.
        targets: (C, D) unit vectors, target i of class target_class[i], (C,). target_repeat: r. A class may have
            none or several; a target whose class has no image here is an anchor among its own copies.
        anchors: "all" rows, or "targets" alone. unbiased: j runs over p and the rows of other labels.
        generator: of the draws: line i of randint(2**62, (R, k)) is row i's, see `view_and_drawn`; CPU or the device.

    Returns a scalar in views' dtype; float16 and bfloat16 are computed, and returned, in float32, under autocast too.
    views and targets get gradients, which have none themselves. It is 0 for one image alone, and with `unbiased` for
    one label alone. Memory besides the inputs, gradients included, measured at N = 1024, C = 100, r = 25, D = 128,
    k = 6 or 0, float32 on the CPU: 9 MiB at most, `unbiased` 12 MiB; one matrix of all pairs of rows would be 190.

    Raises:
        ValueError: an argument that is none of these.
    """
    _check(views, labels, num_positive, temperature, targets, target_class, target_repeat, anchors)
    if targets is None:
        targets, target_class = views.new_zeros(0, views.shape[2]), labels[:0]
    N, C, r = len(views), len(targets), target_repeat
    drawn = None
    if 0 < num_positive < 2 * (N + C * r) - 2:  # more is the whole class, whatever the class
        drawn = _drawn_columns(torch.cat([labels, target_class.repeat_interleave(r)]), N, r, num_positive, generator)
    with torch.autocast(views.device.type, enabled=False):
        rows = _rows(views, labels, targets, target_class, r)
        blocks = _blocks(N, C, drawn, anchors, views.device.type)
        total = SumInBlocks.apply(rows.vector, rows, blocks, temperature, unbiased)
    return total / (2 * C * r if anchors == "targets" else 2 * (N + C * r))


class SumInBlocks(torch.autograd.Function):
    """The sum of the anchors' losses, some anchors at a time.

    The gradient is taken of each block in the forward pass, so no block's logits are kept nor made twice.
    forward args: the rows' vector (U, D), then what `_anchor_losses` takes, with `blocks` for place and columns.
    """

    @staticmethod
    def forward(ctx, vector: Tensor, rows: Rows, blocks: Iterable[Block], temperature: float, unbiased: bool) -> Tensor:
        total, gradient = vector.new_zeros(()), torch.zeros_like(vector)
        for place, columns in blocks:
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = vector.detach().requires_grad_(ctx.needs_input_grad[0])
                losses = _anchor_losses(rows._replace(vector=leaf), place, columns, temperature, unbiased)  # (B,)
                loss = (losses * rows.copies[place]).sum()
            total += loss.detach()
            if ctx.needs_input_grad[0]:
                gradient += torch.autograd.grad(loss, leaf)[0]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph; once_differentiable would let it pass where grad is a constant
            raise RuntimeError("in_batch_loss has no second derivative: its gradient is taken in the forward pass")
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _anchor_losses(rows: Rows, place: slice, columns: Tensor | None, temperature: float, unbiased: bool) -> Tensor:
    """The loss of each anchor, (B,); place: of the B anchors among the U vectors.

    columns: (B, w) int64, their positives, a column as often as it is one, U for none; None: the whole class.
    """
    logits = (rows.vector[place] / temperature) @ rows.vector.T  # (B, U)
    same = rows.label[place, None] == rows.label  # (B, U)
    others = rows.copies.repeat(len(logits), 1)  # (B, U) how many rows a column is, but for the anchor itself
    others.diagonal(place.start).sub_(1)
    if columns is None:
        share = others * same  # (B, U)
    else:
        share = logits.new_zeros(len(logits), len(rows.label) + 1)
        share = share.scatter_add_(1, columns, torch.ones_like(columns, dtype=share.dtype))[:, :-1]  # (B, U)
    share = share / share.sum(1, keepdim=True)  # 1 / |P_i| for each positive
    if unbiased:
        negatives = (logits + rows.copies.log()).masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
        log_z = torch.logaddexp(negatives, logits)  # (B, U): a denominator for each positive
    else:
        log_z = (logits + others.log()).logsumexp(1, keepdim=True)  # (B, 1)
    return (share * (log_z - logits)).sum(1)


def _rows(views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, r: int) -> Rows:
    dtype = torch.promote_types(views.dtype, torch.float32)  # exp(1/0.07) is beyond float16
    vector = torch.cat([views[:, 0].to(dtype), views[:, 1].to(dtype), targets.to(dtype)])
    copies = vector.new_ones(len(vector))
    copies[2 * len(views) :] = 2 * r
    return Rows(vector, torch.cat([labels, labels, target_class]), copies)


def _drawn_columns(labels: Tensor, N: int, r: int, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The positives of the images, (2N, k + 1), and of each target's 2r copies together, (C, 2r(k + 1)), as columns.

    labels: (N + C·r,) of one view's rows.
    """
    M = len(labels)
    device = "cpu" if generator is None else generator.device
    draws = sent(torch.randint(LARGEST_DRAW, (2 * M, k), generator=generator, device=device), labels.device)
    positives = view_and_drawn(labels.repeat(2), draws)  # (2M, k + 1) rows
    C = (M - N) // r
    image = torch.arange(N, device=labels.device)
    copy = torch.arange(2 * N, 2 * N + C, device=labels.device).repeat_interleave(r)
    none = image.new_full((1,), 2 * N + C)
    column = torch.cat([image, copy, N + image, copy, none])  # (2M + 1,) of each row; the last, -1, is nobody's
    by_view = column[positives].view(2, M, k + 1)
    copies = by_view[:, N:].reshape(2, C, r * (k + 1)).transpose(0, 1)  # (C, 2, r(k + 1))
    return by_view[:, :N].reshape(2 * N, k + 1), copies.flatten(1)


def _blocks(N: int, C: int, drawn: tuple[Tensor, Tensor] | None, anchors: str, device: str) -> Iterator[Block]:
    """Places of so many anchors as are worked on at a time, images or targets, and their positives' columns."""
    size = max(1, LOGITS.get(device, LOGITS["cuda"]) // (2 * N + C))
    images, targets = (0, 2 * N), (2 * N, 2 * N + C)
    for group, (first, end) in enumerate([images, targets]):
        if anchors == "targets" and group == 0:
            continue
        for begin in range(first, end, size):
            place = slice(begin, min(begin + size, end))
            yield place, None if drawn is None else drawn[group][begin - first : place.stop - first]


def _check(
    views: Tensor,
    labels: Tensor,
    num_positive: int,
    temperature: float,
    targets: Tensor | None,
    target_class: Tensor | None,
    target_repeat: int,
    anchors: str,
) -> None:
    """Shapes and numbers alone: to look at values would have the host wait for a GPU."""
    N, D = (views.shape[0], views.shape[-1]) if views.dim() == 3 else (0, 0)
    C = len(targets) if targets is not None and targets.dim() else 0
    if not (N and views.shape[1] == 2 and views.is_floating_point()):
        raise ValueError(f"views {_said(views)}, expected (N, 2, D) floats of at least one image")
    if not (labels.shape == (N,) and _are_integers(labels)):
        raise ValueError(f"labels {_said(labels)}, expected ({N},) integers for views {tuple(views.shape)}")
    if (targets is None) != (target_class is None):
        raise ValueError("targets and target_class: one without the other")
    if targets is not None and not (C and targets.shape == (C, D) and targets.is_floating_point()):
        raise ValueError(f"targets {_said(targets)}, expected (C, {D}) floats for views {tuple(views.shape)}")
    if targets is not None and not (target_class.shape == (C,) and _are_integers(target_class)):
        raise ValueError(f"target_class {_said(target_class)}, expected ({C},) integers, the class of each target")
    if anchors not in ANCHORS or (anchors == "targets" and targets is None):
        raise ValueError(f"anchors {anchors!r}, expected one of {ANCHORS}, and 'targets' with targets only")
    if num_positive < 0 or target_repeat < 1 or not temperature > 0:
        found = f"num_positive {num_positive}, target_repeat {target_repeat}, temperature {temperature}"
        raise ValueError(f"{found}, expected at least 0, at least 1 and more than 0")


def _are_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _said(values: Tensor) -> str:
    return f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}"
