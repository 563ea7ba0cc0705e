"""In-batch losses, summed over blocks of anchors.

Symbols: N images, D feature dimension, C targets; U = 2N + C distinct vectors, the columns. All copies of a target
have the same logits, so large matrices have U columns, and each column carries its number of copies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Logits computed at a time: few enough for the cache of a CPU, enough to keep a GPU busy.
LOGITS = {"cpu": 2**18, "cuda": 2**24}
Block = tuple[slice, Tensor | None]  # rows of some anchors, and the columns of their positives


class Rows(NamedTuple):
    """The distinct vectors: N images of view 1, N of view 2, C targets. copies: how often each occurs in the batch."""

    vector: Tensor  # (U, D)
    label: Tensor  # (U,)
    copies: Tensor  # (U,), in the vectors' dtype
    images: int  # 2N


class InBatchTerms(NamedTuple):
    """The loss and its parts, scalars: loss = loss_class (image positives) + loss_target (target positives).

    Only loss carries a gradient.
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor


def rows_of(views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, copies: int) -> Rows:
    """Collect the distinct vectors of a batch. copies: number of copies of each target over both views."""
    dtype = torch.promote_types(views.dtype, torch.float32)  # exp(1/0.07) is beyond float16
    vector = torch.cat([views[:, 0].to(dtype), views[:, 1].to(dtype), targets.to(dtype)])
    images = 2 * len(views)
    number = vector.new_ones(len(vector))
    number[images:] = copies
    return Rows(vector, torch.cat([labels, labels, target_class]), number, images)


def blocks_of(rows: Rows, drawn: tuple[Tensor, Tensor] | None, anchors: str) -> list[Block]:
    """Split the anchors into blocks of images or of targets, each with the columns of its positives.

    Args:
        drawn: columns for the images and for the targets, see `_anchor_losses`; None uses the whole class.
        anchors: "all", "images" or "targets".
    """
    images, end = rows.images, len(rows.label)
    blocks, size = [], max(1, LOGITS.get(rows.vector.device.type, LOGITS["cuda"]) // end)
    for group, (kind, first, last) in enumerate([("images", 0, images), ("targets", images, end)]):
        if anchors not in ("all", kind):
            continue
        for begin in range(first, last, size):
            place = slice(begin, min(begin + size, last))
            blocks.append((place, None if drawn is None else drawn[group][begin - first : place.stop - first]))
    return blocks


def mean_over(
    rows: Rows, blocks: list[Block], temperature: float, unbiased: bool, target_weight: float | None
) -> InBatchTerms:
    """Return the mean loss over the anchors of the blocks, each counted as often as it occurs in the batch."""
    number = sum(rows.copies[place].sum() for place, _ in blocks)
    with torch.autocast(rows.vector.device.type, enabled=False):
        total, parts = SumInBlocks.apply(rows.vector, rows, blocks, temperature, unbiased, target_weight)
    return InBatchTerms(total / number, *(parts / number))


class SumInBlocks(torch.autograd.Function):
    """The sum of the anchors' losses, a scalar, and its two parts, (2,), computed block by block.

    The forward pass also computes the gradient of each block, so the logits of a block are neither stored nor
    recomputed. Arguments of forward: vector (U, D) of the rows, then the arguments of `_anchor_losses`, with `blocks`
    in place of `place` and `columns`.
    """

    @staticmethod
    def forward(
        ctx,
        vector: Tensor,
        rows: Rows,
        blocks: list[Block],
        temperature: float,
        unbiased: bool,
        target_weight: float | None,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        parts, gradient = vector.new_zeros(2), torch.zeros_like(vector)
        for place, columns in blocks:
            with torch.set_grad_enabled(wanted):
                leaf = vector.detach().requires_grad_(wanted)
                of_block = rows._replace(vector=leaf)
                losses = _anchor_losses(of_block, place, columns, temperature, unbiased, target_weight)  # (B, 2)
                sums = (losses * rows.copies[place, None]).sum(0)  # (2,)
                loss = sums.sum()
            parts += sums.detach()
            if wanted:
                gradient += torch.autograd.grad(loss, leaf)[0]
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable misses this if grad is a constant
            raise RuntimeError("in_batch_loss has no second derivative; its gradient is computed in the forward pass")
        (gradient,) = ctx.saved_tensors
        return grad * gradient, *[None] * 5


def _anchor_losses(
    rows: Rows,
    place: slice,
    columns: Tensor | None,
    temperature: float,
    unbiased: bool,
    target_weight: float | None,
) -> Tensor:
    """Return the loss of each anchor, (B, 2): the part of the images and the part of the targets.

    Args:
        place: rows of the B anchors among the U vectors.
        columns: (B, w) int64, columns of the positives; a column may repeat, U means no positive. None uses the whole
            class.
        target_weight: weight of the class's target, added to the mean over the images. None treats targets like
            images.
    """
    logits = (rows.vector[place] / temperature) @ rows.vector.T  # (B, U)
    same = rows.label[place, None] == rows.label  # (B, U)
    others = rows.copies.repeat(len(logits), 1)  # (B, U) copies of each column, without the anchor itself
    others.diagonal(place.start).sub_(1)
    if columns is None:
        weight = others * same  # (B, U)
    else:
        weight = logits.new_zeros(len(logits), len(rows.label) + 1)
        weight = weight.scatter_add_(1, columns, torch.ones_like(columns, dtype=weight.dtype))[:, :-1]  # (B, U)
    if target_weight is None:
        weight = weight / weight.sum(1, keepdim=True)  # 1 / |P_i| for each positive
    else:
        images, own = weight[:, : rows.images], same[:, rows.images :].to(weight.dtype)  # (B, 2N), (B, C)
        own = own * (target_weight / own.sum(1, keepdim=True).clamp(min=1))
        weight = torch.cat([images / images.sum(1, keepdim=True), own], dim=1)  # (B, U)
    if unbiased:
        negatives = (logits + rows.copies.log()).masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
        log_z = torch.logaddexp(negatives, logits)  # (B, U): one denominator per positive
    else:
        log_z = (logits + others.log()).logsumexp(1, keepdim=True)  # (B, 1)
    losses = weight * (log_z - logits)  # (B, U)
    return torch.stack([losses[:, : rows.images].sum(1), losses[:, rows.images :].sum(1)], dim=1)
