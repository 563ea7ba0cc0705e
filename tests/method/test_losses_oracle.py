"""The losses and their gradients against the loops of oracle.py, in float64 on random inputs."""

import pytest
import torch

from moco.losses import contrastive_loss, queue
from moco.losses.positives import PositiveSum, all_positives, sample_positives
from tests import oracle
from tests.tiny import unit

N, D, Q, C = 5, 4, 14, 3


def compare(q, k, queue, labels, drawn, chosen, **tsc):
    """Loss and gradient of both; tsc holds targets, assigned, target_row and target_weight."""
    target_row = tsc.pop("target_row", None)
    out = contrastive_loss(q, k, queue, drawn, 0.3, **tsc)
    tsc.pop("assigned", None)
    loss_class, loss_target = oracle.loss(q, k, queue, labels, chosen, 0.3, target_row=target_row, **tsc)
    torch.testing.assert_close(out.loss_class, loss_class, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.loss_target, loss_target, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(out.loss, q)
    (theirs,) = torch.autograd.grad(loss_class + loss_target, q)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True, params=[5, 2048], ids=["in parts", "whole"])
def columns(request, monkeypatch):
    """All tests here with the queue of 14 in three parts, and in one."""
    monkeypatch.setitem(queue.COLUMNS, "cpu", request.param)


@pytest.fixture(params=range(5))
def batch(request):
    """Queries, keys, queue, queue labels (-1 = empty), labels, and random numbers to draw with."""
    torch.manual_seed(request.param)
    q, k, queue = unit(N, D).requires_grad_(), unit(N, D), unit(D, Q, dim=0)
    return q, k, queue, torch.randint(-1, C, (Q,)), torch.randint(0, C, (N,)), torch.randint(2**62, (N, 6))


@pytest.mark.parametrize("num_positive", [0, 1, 6])
def test_kcl(batch, num_positive):
    q, k, queue, queue_labels, labels, draws = batch
    if num_positive == 0:
        drawn, used = all_positives(queue, queue_labels, labels), None
    else:
        used = draws[:, :num_positive]
        drawn, _ = sample_positives(queue, queue_labels, labels, used)
    chosen = oracle.positives(
        labels.tolist(), queue_labels.tolist(), None if used is None else used.tolist(), copies=0, always=0
    )
    compare(q, k, queue, labels.tolist(), drawn, chosen)


@pytest.mark.parametrize("form", ["release", "paper"])
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("sep_t", [True, False])
def test_tsc(batch, sep_t, repeat, form):
    q, k, queue, queue_labels, labels, draws = batch
    draws = draws[:, :3]
    targets = unit(C, D).repeat_interleave(repeat, dim=0)
    target_row = [repeat * y for y in torch.randperm(C).tolist()]
    target = targets[torch.tensor(target_row)[labels]]
    drawn, assigned = sample_positives(queue, queue_labels, labels, draws, target, 0 if sep_t else repeat)
    if sep_t:
        assigned = PositiveSum(repeat * target, torch.full((N,), float(repeat), dtype=q.dtype))
    chosen = oracle.positives(
        labels.tolist(),
        queue_labels.tolist(),
        draws.tolist(),
        copies=0 if sep_t else repeat,
        always=repeat if sep_t else 0,
    )
    tsc = {"targets": targets, "assigned": assigned, "target_row": target_row, "target_weight": 0.2, "form": form}
    compare(q, k, queue, labels.tolist(), drawn, chosen, **tsc)


@pytest.mark.parametrize("temperature", [0.001, 0.07, 10.0])
def test_log_sum_exp_has_torchs_value_and_gradient(temperature):
    """Logits up to 1000 in size: the largest so far changes from part to part, and nothing overflows."""
    q = (unit(N, D) / temperature).requires_grad_()
    columns = [unit(D, Q, dim=0), unit(D, C, dim=0)]
    logits = torch.cat([q @ part for part in columns], dim=1)
    threshold = logits[:, 3].detach() + 1e-3 / temperature
    log_sum, above = queue.LogSumExp.apply(q, threshold, *columns)
    torch.testing.assert_close(log_sum, logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(above, (logits > threshold[:, None]).sum(1))
    weight = torch.randn(N, dtype=q.dtype)
    (ours,) = torch.autograd.grad(log_sum, q, weight)
    (theirs,) = torch.autograd.grad(logits.logsumexp(1), q, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_queue_may_be_overwritten_before_the_backward_pass(batch):
    q, k, queue, queue_labels, labels, draws = batch
    drawn, _ = sample_positives(queue, queue_labels, labels, draws)
    (expected,) = torch.autograd.grad(contrastive_loss(q, k, queue, drawn, 0.3).loss, q)
    out = contrastive_loss(q, k, queue, drawn, 0.3)
    queue.zero_()
    (gradient,) = torch.autograd.grad(out.loss, q)
    assert torch.equal(gradient, expected)


def test_a_second_derivative_is_refused(batch):
    q, k, queue, queue_labels, labels, draws = batch
    drawn, _ = sample_positives(queue, queue_labels, labels, draws)
    (gradient,) = torch.autograd.grad(contrastive_loss(q, k, queue, drawn, 0.3).loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
