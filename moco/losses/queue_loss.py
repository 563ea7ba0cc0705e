"""The KCL and TSC losses with a queue: pure functions of tensors.

These functions do not depend on arguments of the scripts, process groups or state.
Symbols: N anchors, D feature dimension, Q queue length, C classes, r copies
of each target, k sampled positives. All features are unit vectors.

A positive enters the loss through its logit, which is linear in the positive:
the sum of an anchor's positive logits is q·(sum of its positives). Positives are
therefore passed as a `PositiveSum` (their vector sum and their number), and no
(N, Q) mask of positives is needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.losses.positives import PositiveSum

# Columns of logits computed at a time, per device type: few enough for the cache of a CPU, enough to keep a GPU busy.
COLUMNS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}
LOSS_FORMS = ("release", "paper")


class QueueLossOutput(NamedTuple):
    """The result of `contrastive_loss`.

    Attributes:
        loss, loss_class, loss_target: scalars; loss = loss_class + loss_target.
        key_rank: (N,) int64, number of other logits larger than that of the own key (0 = top-1).
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor
    key_rank: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class LogSumExp(torch.autograd.Function):
    """log sum_j exp(q·x_j) over many columns x_j, and the number of logits above a threshold.

    The logits are computed for some columns at a time and are not stored. The derivative with
    respect to q is the mean of the x_j under the softmax, an (N, D) tensor. It is accumulated in
    the same pass (each part scaled by the largest logit so far), so the backward pass needs
    neither the logits nor the columns.

    Arguments of forward: q (N, D), threshold (N,), then any number of (D, M) matrices of columns.
    Returns (N,) in the dtype of q, and (N,) int64.
    """

    @staticmethod
    def forward(ctx, q: Tensor, threshold: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.full_like(threshold, -torch.inf)  # (N,) largest logit so far
        total = torch.zeros_like(threshold)  # (N,) sum of exp(logit - largest)
        mean = torch.zeros_like(q)  # (N, D) sum of exp(logit - largest) x_j
        above = torch.zeros_like(threshold, dtype=torch.int64)  # (N,)
        size = COLUMNS_PER_CHUNK.get(q.device.type, COLUMNS_PER_CHUNK["cuda"])
        for part in (part for matrix in columns if matrix.numel() for part in matrix.split(size, dim=1)):
            part = part.to(q.dtype)  # (D, M)
            logits = q @ part  # (N, M)
            above += (logits > threshold[:, None]).sum(1)
            before, largest = largest, torch.maximum(largest, logits.amax(1))
            logits.sub_(largest[:, None]).exp_()
            shrink = (before - largest).exp()  # (N,)
            total = total * shrink + logits.sum(1)
            if ctx.needs_input_grad[0]:
                mean = torch.addmm(mean * shrink[:, None], logits, part.T)
        ctx.save_for_backward(mean / total[:, None])
        ctx.mark_non_differentiable(above)
        return largest + total.log(), above

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
        (mean,) = ctx.saved_tensors
        return grad[:, None] * mean, *[None] * (len(ctx.needs_input_grad) - 1)


def contrastive_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    queue_positives: PositiveSum,
    temperature: float,
    targets: Tensor | None = None,
    target_positives: PositiveSum | None = None,
    target_weight: float = 1.0,
    form: str = "release",
) -> QueueLossOutput:
    """Return the KCL loss, or the TSC loss if `targets` are given (TSC, CVPR 2022, equations 2 and 4).

    With log p under the softmax over own key, queue and targets::

        loss_class  = - 1/N sum_i 1/a_i sum_{own key, queue_positives} log p
        loss_target = - target_weight 1/N sum_i 1/b_i sum_{target_positives} log p

    Anchor i has n_i positives from the queue and m_i from the targets. Form "release" is the loss of the code released
    by the TSC authors: a_i = b_i = 1 + n_i + m_i, the number of all its positives. Form "paper" is the equation of the
    paper: a_i = 1 + n_i, b_i = 1. Both forms are equal for KCL. Half precision is computed in float32, also under
    autocast, because exp(1/0.07) overflows float16.
    Only q and k get gradients, without second derivatives. queue and targets may change before the backward pass.

    Args:
        q: (N, D) queries. k: (N, D), their own keys. temperature: of the softmax, > 0.
        queue: (D, Q), without the keys of this step. queue_positives: positives from it.
        targets: (C·r, D) or None. target_positives: positives from the targets; requires `targets`.
        target_weight: lambda. form: "release" or "paper"; any other value raises ValueError.
    """
    if form not in LOSS_FORMS:
        raise ValueError(f"form {form!r}, expected one of {LOSS_FORMS}")
    scaled = at_least_float32(q) / temperature  # (N, D)
    key_logit = (scaled * k).sum(1)  # (N,) logit of the own key
    with torch.autocast(q.device.type, enabled=False):
        others = [queue] if targets is None else [queue, targets.T]  # (D, Q), (D, C·r)
        log_others, key_rank = LogSumExp.apply(scaled, key_logit.detach(), *others)  # (N,), (N,)
    log_z = torch.logaddexp(key_logit, log_others)  # (N,)
    num_class = 1 + queue_positives.count  # (N,) own key and positives from the queue
    log_p = key_logit + (scaled * queue_positives.vector).sum(1) - num_class * log_z  # (N,) summed over positives
    if target_positives is None:
        loss_class = -(log_p / num_class).mean()
        loss_target = torch.zeros_like(loss_class)
    else:
        log_p_target = (scaled * target_positives.vector).sum(1) - target_positives.count * log_z  # (N,)
        num_positives = num_class + target_positives.count  # (N,)
        a, b = (num_positives, num_positives) if form == "release" else (num_class, 1)
        loss_class = -(log_p / a).mean()
        loss_target = -target_weight * (log_p_target / b).mean()
    return QueueLossOutput(loss_class + loss_target, loss_class, loss_target, key_rank)
