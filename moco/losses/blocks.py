"""In-batch losses, summed over blocks of anchors.

Symbols: N images, D feature dimension, C targets; U = 2N + C distinct vectors. All copies of a target have the same
logits. Large matrices therefore have U columns, one per distinct vector, which is weighted by its number of copies.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits computed at a time, per device type: few enough for the cache of a CPU, enough to keep a GPU busy.
MAX_LOGITS_PER_BLOCK = {"cpu": 2**18, "cuda": 2**24}
MAX_STORED_LOGITS = 2**26  # with more logits, the backward pass computes each block again
# Some anchors as a slice of the distinct vectors, and the columns of their positives.
Block = tuple[slice, Tensor | None]


class DistinctVectors(NamedTuple):
    """The distinct vectors of a batch: N images of view 1, N of view 2, C targets."""

    vector: Tensor  # (U, D)
    label: Tensor  # (U,)
    multiplicity: Tensor  # (U,) how often each occurs in the batch, in the dtype of the vectors
    num_images: int  # 2N


class InBatchLossOutput(NamedTuple):
    """The loss and its parts, scalars: loss = loss_class (image positives) + loss_target (target positives).

    Only loss carries a gradient.
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor


def distinct_vectors(
    views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, copies: int
) -> DistinctVectors:
    """Collect the distinct vectors of a batch. copies: number of copies of each target over both views."""
    dtype = torch.promote_types(views.dtype, torch.float32)  # exp(1/0.07) is beyond float16
    vector = torch.cat([views[:, 0].to(dtype), views[:, 1].to(dtype), targets.to(dtype)])
    num_images = 2 * len(views)
    multiplicity = vector.new_ones(len(vector))
    multiplicity[num_images:] = copies
    return DistinctVectors(vector, torch.cat([labels, labels, target_class]), multiplicity, num_images)


def anchor_blocks(distinct: DistinctVectors, positives: tuple[Tensor, Tensor] | None, anchors: str) -> list[Block]:
    """Split the anchors into blocks of images or of targets, each with the columns of its positives.

    Args:
        positives: positives of the images and of the targets, each as the argument `columns` of `_block_terms`; None
            uses the whole class.
        anchors: "all", "images" or "targets".
    """
    num_images, end = distinct.num_images, len(distinct.label)
    max_logits = MAX_LOGITS_PER_BLOCK.get(distinct.vector.device.type, MAX_LOGITS_PER_BLOCK["cuda"])
    blocks, size = [], max(1, max_logits // end)
    for group, (kind, first, last) in enumerate([("images", 0, num_images), ("targets", num_images, end)]):
        if anchors not in ("all", kind):
            continue
        for begin in range(first, last, size):
            anchor_slice = slice(begin, min(begin + size, last))
            columns = None if positives is None else positives[group][begin - first : anchor_slice.stop - first]
            blocks.append((anchor_slice, columns))
    return blocks


def mean_loss(
    distinct: DistinctVectors, blocks: list[Block], temperature: float, unbiased: bool, target_weight: float | None
) -> InBatchLossOutput:
    """Return the mean loss over the anchors of the blocks, each counted as often as it occurs in the batch."""
    num_anchors = sum(distinct.multiplicity[anchor_slice].sum() for anchor_slice, _ in blocks)
    num_logits = sum(anchor_slice.stop - anchor_slice.start for anchor_slice, _ in blocks) * len(distinct.vector)
    block_terms = _block_terms
    if num_logits > MAX_STORED_LOGITS:
        block_terms = partial(checkpoint, _block_terms, use_reentrant=False, preserve_rng_state=False)
    terms = distinct.vector.new_zeros(2)
    with torch.autocast(distinct.vector.device.type, enabled=False):
        for anchor_slice, columns in blocks:
            terms = terms + block_terms(distinct, anchor_slice, columns, temperature, unbiased, target_weight)
    return InBatchLossOutput(terms.sum() / num_anchors, *(terms.detach() / num_anchors))


def _block_terms(
    distinct: DistinctVectors,
    anchor_slice: slice,
    columns: Tensor | None,
    temperature: float,
    unbiased: bool,
    target_weight: float | None,
) -> Tensor:
    """Return the summed loss of a block of anchors, (2,): its terms for image positives and for target positives.

    Args:
        anchor_slice: the B anchors, as a slice of the U vectors.
        columns: (B, w) int64, columns of the positives; a column may repeat, U means no positive. None uses the whole
            class.
        target_weight: weight of the class's target, added to the mean over the images. None treats targets like
            images.
    """
    num_images = distinct.num_images
    logits = (distinct.vector[anchor_slice] / temperature) @ distinct.vector.T  # (B, U)
    same = distinct.label[anchor_slice, None] == distinct.label  # (B, U)
    others = distinct.multiplicity.repeat(len(logits), 1)  # (B, U) copies of each column, without the anchor itself
    others.diagonal(anchor_slice.start).sub_(1)
    if columns is None:
        weight = others * same  # (B, U)
    else:
        weight = logits.new_zeros(len(logits), len(distinct.label) + 1)
        weight = weight.scatter_add_(1, columns, torch.ones_like(columns, dtype=weight.dtype))[:, :-1]  # (B, U)
    if target_weight is None:
        weight = weight / weight.sum(1, keepdim=True)  # 1 / |P_i| for each positive
    else:
        on_images = weight[:, :num_images]  # (B, 2N)
        on_targets = same[:, num_images:].to(weight.dtype)  # (B, C)
        on_targets = on_targets * (target_weight / on_targets.sum(1, keepdim=True).clamp(min=1))
        weight = torch.cat([on_images / on_images.sum(1, keepdim=True), on_targets], dim=1)  # (B, U)
    if unbiased:
        # (B, 1): all columns of other labels
        negatives = (logits + distinct.multiplicity.log()).masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        log_z = torch.logaddexp(negatives, logits)  # (B, U): one denominator per positive
    else:
        log_z = (logits + others.log()).logsumexp(1, keepdim=True)  # (B, 1)
    losses = weight * (log_z - logits)  # (B, U)
    terms = torch.stack([losses[:, :num_images].sum(1), losses[:, num_images:].sum(1)], dim=1)  # (B, 2)
    return (terms * distinct.multiplicity[anchor_slice, None]).sum(0)
