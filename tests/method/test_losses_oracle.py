"""The losses and their gradients match the loops of oracle.py, in float64 on random inputs."""

import pytest
import torch

from moco.losses import contrastive_loss, queue_loss
from moco.losses.positives import PositiveSum, all_positives, sample_positives
from tests import oracle
from tests.tiny import unit_vectors

N, D, Q, C = 5, 4, 14, 3


def assert_matches_oracle(q, k, queue, labels, queue_positives, chosen, **target_options):
    """Compare loss and gradient. target_options: targets, target_positives, target_row, target_weight and form."""
    target_row = target_options.pop("target_row", None)
    out = contrastive_loss(q, k, queue, queue_positives, 0.3, **target_options)
    target_options.pop("target_positives", None)
    loss_class, loss_target = oracle.loss(q, k, queue, labels, chosen, 0.3, target_row=target_row, **target_options)
    torch.testing.assert_close(out.loss_class, loss_class, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.loss_target, loss_target, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(out.loss, q)
    (theirs,) = torch.autograd.grad(loss_class + loss_target, q)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True, params=[5, 2048], ids=["in parts", "whole"])
def columns(request, monkeypatch):
    """Run all tests of this file with the queue of 14 keys in three parts, and in one."""
    monkeypatch.setitem(queue_loss.COLUMNS_PER_CHUNK, "cpu", request.param)


@pytest.fixture(params=range(5))
def batch(request):
    """Return queries, keys, queue, queue labels (-1: empty), labels and random numbers for sampling."""
    torch.manual_seed(request.param)
    q, k, queue = unit_vectors(N, D).requires_grad_(), unit_vectors(N, D), unit_vectors(D, Q, dim=0)
    return q, k, queue, torch.randint(-1, C, (Q,)), torch.randint(0, C, (N,)), torch.randint(2**62, (N, 6))


@pytest.mark.parametrize("num_positive", [0, 1, 6])
def test_kcl_loss_and_gradient_match_oracle(batch, num_positive):
    q, k, queue, queue_labels, labels, draws = batch
    if num_positive == 0:
        queue_positives, used = all_positives(queue, queue_labels, labels), None
    else:
        used = draws[:, :num_positive]
        queue_positives, _ = sample_positives(queue, queue_labels, labels, used)
    chosen = oracle.positives(
        labels.tolist(), queue_labels.tolist(), None if used is None else used.tolist(), copies=0, always=0
    )
    assert_matches_oracle(q, k, queue, labels.tolist(), queue_positives, chosen)


@pytest.mark.parametrize("form", ["release", "paper"])
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("sep_t", [True, False])
def test_tsc_loss_and_gradient_match_oracle(batch, sep_t, repeat, form):
    q, k, queue, queue_labels, labels, draws = batch
    draws = draws[:, :3]
    targets = unit_vectors(C, D).repeat_interleave(repeat, dim=0)
    target_row = [repeat * y for y in torch.randperm(C).tolist()]
    target = targets[torch.tensor(target_row)[labels]]
    queue_positives, target_positives = sample_positives(
        queue, queue_labels, labels, draws, target, 0 if sep_t else repeat
    )
    if sep_t:
        target_positives = PositiveSum(repeat * target, torch.full((N,), float(repeat), dtype=q.dtype))
    chosen = oracle.positives(
        labels.tolist(),
        queue_labels.tolist(),
        draws.tolist(),
        copies=0 if sep_t else repeat,
        always=repeat if sep_t else 0,
    )
    target_options = {
        "targets": targets,
        "target_positives": target_positives,
        "target_row": target_row,
        "target_weight": 0.2,
        "form": form,
    }
    assert_matches_oracle(q, k, queue, labels.tolist(), queue_positives, chosen, **target_options)


@pytest.mark.parametrize("temperature", [0.001, 0.07, 10.0])
def test_log_sum_exp_matches_torch(temperature):
    """The logits reach 1000. The running maximum changes between parts, and nothing overflows."""
    q = (unit_vectors(N, D) / temperature).requires_grad_()
    columns = [unit_vectors(D, Q, dim=0), unit_vectors(D, C, dim=0)]
    logits = torch.cat([q @ part for part in columns], dim=1)
    threshold = logits[:, 3].detach() + 1e-3 / temperature
    log_sum, above = queue_loss.LogSumExp.apply(q, threshold, *columns)
    torch.testing.assert_close(log_sum, logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(above, (logits > threshold[:, None]).sum(1))
    weight = torch.randn(N, dtype=q.dtype)
    (ours,) = torch.autograd.grad(log_sum, q, weight)
    (theirs,) = torch.autograd.grad(logits.logsumexp(1), q, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_backward_is_correct_after_queue_is_overwritten(batch):
    q, k, queue, queue_labels, labels, draws = batch
    queue_positives, _ = sample_positives(queue, queue_labels, labels, draws)
    (expected,) = torch.autograd.grad(contrastive_loss(q, k, queue, queue_positives, 0.3).loss, q)
    out = contrastive_loss(q, k, queue, queue_positives, 0.3)
    queue.zero_()
    (gradient,) = torch.autograd.grad(out.loss, q)
    assert torch.equal(gradient, expected)


def test_second_derivative_raises(batch):
    q, k, queue, queue_labels, labels, draws = batch
    queue_positives, _ = sample_positives(queue, queue_labels, labels, draws)
    (gradient,) = torch.autograd.grad(contrastive_loss(q, k, queue, queue_positives, 0.3).loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
