"""The KCL and TSC losses: pure functions of tensors.

Nothing here knows of argument namespaces, process groups, devices or state.
Letters: N anchors, D feature dimension, Q queue length, C classes, r copies
of each target, k drawn positives.  All features are unit vectors.

A positive enters the loss through its logit, and a logit is linear in the
positive: the sum of an anchor's positive logits is q·(sum of its positives).
So positives travel as a `PositiveSum` (their vector sum and their number), and
no (N, Q) mask is ever built to say which column is whose positive.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.losses.positives import PositiveSum

# Columns of logits made at a time: on the CPU what stays in the cache, on a GPU what keeps it busy.
COLUMNS = {"cpu": 2048, "cuda": 16384}
LOSS_FORMS = ("release", "paper")


class LossOutput(NamedTuple):
    """What `contrastive_loss` returns.

    loss, loss_class, loss_target: scalars; loss = loss_class + loss_target.
    key_rank: (N,) int64, how many other logits exceed the own key's (0 = top-1).
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor
    key_rank: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class LogSumExp(torch.autograd.Function):
    """log sum_j exp(q·x_j) over many columns x_j, and how many logits exceed a threshold.

    The logits are made some columns at a time and never kept. The derivative by q is the
    mean of the x_j under the softmax, an (N, D) tensor: it is summed up in the same pass
    (each part scaled by the largest logit so far), so the backward pass needs no logits,
    nor the columns.

    forward args: q (N, D), threshold (N,), then any number of (D, M) columns.
    Returns (N,) in q's dtype and (N,) int64.
    """

    @staticmethod
    def forward(ctx, q: Tensor, threshold: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.full_like(threshold, -torch.inf)  # (N,) of the logits so far
        total = torch.zeros_like(threshold)  # (N,) sum of exp(logit - largest)
        mean = torch.zeros_like(q)  # (N, D) that sum with x_j in it
        above = torch.zeros_like(threshold, dtype=torch.int64)  # (N,)
        size = COLUMNS.get(q.device.type, COLUMNS["cuda"])
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
    drawn: PositiveSum,
    temperature: float,
    targets: Tensor | None = None,
    assigned: PositiveSum | None = None,
    target_weight: float = 1.0,
    form: str = "release",
) -> LossOutput:
    """KCL's loss, and TSC's when `targets` are given (CVPR 2022, equations 2 and 4).

    With log p taken under the softmax over own key, queue and targets::

        loss_class  = - 1/N sum_i 1/a_i sum_{own key, drawn} log p
        loss_target = - target_weight 1/N sum_i 1/b_i sum_{assigned} log p

    `form` "release", the code the authors ran: a_i = b_i = 1 + drawn + assigned, all positives of anchor i. "paper",
    its equation: a_i = 1 + drawn, b_i = 1. For KCL the two are one. Half precision is computed in float32, under
    autocast too: exp(1/0.07) is beyond float16.

    Args:
        q: (N, D) queries. k: (N, D) their own keys. temperature: of the softmax, > 0.
        queue: (D, Q) as it was before this step's keys. drawn: the positives from it.
        targets: (C·r, D) or None. assigned: the positives from them; needs `targets`.
        target_weight: lambda. form: "release" or "paper".

    The gradient reaches q and k and has none itself; queue and targets may be written to before the backward pass.
    """
    if form not in LOSS_FORMS:
        raise ValueError(f"form {form!r}, expected one of {LOSS_FORMS}")
    scaled = at_least_float32(q) / temperature  # (N, D)
    own = (scaled * k).sum(1)  # (N,) logit of the own key
    with torch.autocast(q.device.type, enabled=False):
        others = [queue] if targets is None else [queue, targets.T]  # (D, Q), (D, C·r)
        log_others, key_rank = LogSumExp.apply(scaled, own.detach(), *others)  # (N,), (N,)
    log_z = torch.logaddexp(own, log_others)  # (N,)
    positives = 1 + drawn.count  # (N,) own key and drawn
    log_p = own + (scaled * drawn.vector).sum(1) - positives * log_z  # (N,) summed over positives
    if assigned is None:
        loss_class = -(log_p / positives).mean()
        loss_target = torch.zeros_like(loss_class)
    else:
        log_p_target = (scaled * assigned.vector).sum(1) - assigned.count * log_z  # (N,)
        of_all = positives + assigned.count  # (N,)
        by_class, by_target = (of_all, of_all) if form == "release" else (positives, 1)
        loss_class = -(log_p / by_class).mean()
        loss_target = -target_weight * (log_p_target / by_target).mean()
    return LossOutput(loss_class + loss_target, loss_class, loss_target, key_rank)
