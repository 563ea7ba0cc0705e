"""KCL as its own authors' code computes it: the first positives instead of random ones, and other denominators."""

import torch
from torch import Tensor

from moco.losses.positives import PositiveSum, _find_classes, sample_offsets
from moco.losses.queue_loss import QueueLossOutput, at_least_float32

UNUSED = ("keep", "drop", "zero")


def positive_columns(queue_labels: Tensor, labels: Tensor, random_ints: Tensor) -> Tensor:
    """Sample k queue columns of each anchor's class, without replacement, exactly as `sample_positives` does.

    Args:
        queue_labels: (Q,) int64, -1 for empty columns. labels: (N,) int64. random_ints: (N, k), see `sample_offsets`.

    Returns:
        (N, k) int64. Q stands for no column, where a class has fewer than k.
    """
    order, start, size = _find_classes(queue_labels, labels)  # (Q,), (N,), (N,)
    return _columns(order, start, size, sample_offsets(size, random_ints))


def first_columns(queue_labels: Tensor, labels: Tensor, pointer: Tensor, k: int) -> Tensor:
    """Return the k most recent queue columns of each anchor's class, the newest first.

    Arguments and result as in `positive_columns`. pointer: (1,) int64, the column that is replaced next.
    """
    length = len(queue_labels)
    newest_first = (pointer - 1 - torch.arange(length, device=labels.device)) % length  # (Q,) columns by age
    order, start, size = _find_classes(queue_labels[newest_first], labels)
    offset = torch.arange(k, device=labels.device).expand(len(labels), k)  # (N, k)
    return _columns(newest_first[order], start, size, offset)


def _columns(order: Tensor, start: Tensor, size: Tensor, offset: Tensor) -> Tensor:
    columns = order[(start[:, None] + offset).clamp(max=len(order) - 1)]  # (N, k)
    return columns.masked_fill(offset >= size[:, None], len(order))


def sum_columns(queue: Tensor, columns: Tensor) -> PositiveSum:
    """Return the positives of each anchor from their columns (N, k), see `positive_columns`. queue: (D, Q)."""
    exists = (columns < queue.shape[1]).to(queue.dtype)  # (N, k)
    keys = queue[:, columns.clamp(max=queue.shape[1] - 1)]  # (D, N, k)
    return PositiveSum(torch.einsum("dnk,nk->nd", keys, exists), exists.sum(1))


def kcl_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    queue_labels: Tensor,
    labels: Tensor,
    columns: Tensor,
    temperature: float,
    unused: str = "keep",
) -> QueueLossOutput:
    """Return the KCL loss with a choice for unused positives: queue entries of its class that are not among columns.

    keep: they are part of the denominator, as in `contrastive_loss`. drop: they are not. zero: their logit there is 0.
    Stores an (N, Q) matrix of logits. q and k get gradients; the queue may change before the backward pass.

    Args:
        q: (N, D) queries. k: (N, D) own keys. queue: (D, Q). queue_labels: (Q,). labels: (N,) int64.
        columns: (N, number of positives), see `positive_columns`. temperature: > 0.
        unused: a value of UNUSED; any other raises ValueError.
    """
    if unused not in UNUSED:
        raise ValueError(f"unused {unused!r}, expected one of {UNUSED}")
    with torch.autocast(q.device.type, enabled=False):
        scaled = at_least_float32(q) / temperature  # (N, D)
        key_logit = (scaled * k).sum(1)  # (N,)
        logits = scaled @ queue.clone().to(scaled.dtype)  # (N, Q)
        chosen = torch.zeros(len(q), len(queue_labels) + 1, dtype=torch.bool, device=q.device)
        chosen = chosen.scatter_(1, columns, True)[:, :-1]  # (N, Q)
        is_unused = (queue_labels == labels[:, None]) & ~chosen  # (N, Q)
        others = logits
        if unused != "keep":
            others = logits.masked_fill(is_unused, -torch.inf if unused == "drop" else 0.0)
        log_z = torch.cat([key_logit[:, None], others], dim=1).logsumexp(1)  # (N,)
        count = 1 + chosen.sum(1)  # (N,)
        log_p = key_logit + (logits * chosen).sum(1) - count * log_z  # (N,) summed over positives
        loss = -(log_p / count).mean()
    key_rank = (others > key_logit[:, None]).sum(1)
    return QueueLossOutput(loss, loss.clone(), torch.zeros_like(loss), key_rank)
