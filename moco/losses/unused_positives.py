"""KCL as its own authors' code computes it: the first positives instead of random ones, and other denominators."""

import torch
from torch import Tensor

from moco.losses.positives import columns_at, find_classes, sample_offsets
from moco.losses.queue_loss import QueueLossOutput, at_least_float32


def positive_columns(queue_labels: Tensor, labels: Tensor, random_ints: Tensor) -> Tensor:
    """Sample k queue columns of each anchor's class, without replacement, exactly as `sample_positives` does.

    Args:
        queue_labels: (Q,) int64, -1 for empty columns. labels: (N,) int64. random_ints: (N, k), see `sample_offsets`.

    Returns:
        (N, k) int64. Q stands for no column, where a class has fewer than k.
    """
    order, start, size = find_classes(queue_labels, labels)  # (Q,), (N,), (N,)
    return columns_at(order, start, size, sample_offsets(size, random_ints))


def first_columns(queue_labels: Tensor, labels: Tensor, pointer: Tensor, k: int) -> Tensor:
    """Return the k most recent queue columns of each anchor's class, the newest first.

    Arguments and result as in `positive_columns`. pointer: (1,) int64, the column that is replaced next.
    """
    length = len(queue_labels)
    newest_first = (pointer - 1 - torch.arange(length, device=labels.device)) % length  # (Q,) columns by age
    order, start, size = find_classes(queue_labels[newest_first], labels)
    offset = torch.arange(k, device=labels.device).expand(len(labels), k)  # (N, k)
    return columns_at(newest_first[order], start, size, offset)


def kcl_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    queue_labels: Tensor,
    labels: Tensor,
    columns: Tensor,
    temperature: float,
    unused: str,
) -> QueueLossOutput:
    """Return the KCL loss without unused positives: queue entries of the anchor's class that are not among columns.

    In the denominator they are dropped, or their logit is zero. (`contrastive_loss` keeps them.)
    Stores an (N, Q) matrix of logits. q and k get gradients; the queue may change before the backward pass.

    Args:
        q: (N, D) queries. k: (N, D) own keys. queue: (D, Q). queue_labels: (Q,). labels: (N,) int64.
        columns: (N, number of positives), see `positive_columns`. temperature: > 0.
        unused: "drop" or "zero"; any other value raises KeyError.
    """
    with torch.autocast(q.device.type, enabled=False):
        scaled = at_least_float32(q) / temperature  # (N, D)
        key_logit = (scaled * k).sum(1)  # (N,)
        logits = scaled @ queue.clone().to(scaled.dtype)  # (N, Q)
        chosen = torch.zeros(len(q), len(queue_labels) + 1, dtype=torch.bool, device=q.device)
        chosen = chosen.scatter_(1, columns, True)[:, :-1]  # (N, Q)
        is_unused = (queue_labels == labels[:, None]) & ~chosen  # (N, Q)
        others = logits.masked_fill(is_unused, {"drop": -torch.inf, "zero": 0.0}[unused])
        log_z = torch.cat([key_logit[:, None], others], dim=1).logsumexp(1)  # (N,)
        count = 1 + chosen.sum(1)  # (N,)
        log_p = key_logit + (logits * chosen).sum(1) - count * log_z  # (N,) summed over positives
        loss = -(log_p / count).mean()
    key_rank = (others > key_logit[:, None]).sum(1)
    return QueueLossOutput(loss, loss.clone(), torch.zeros_like(loss), key_rank)
