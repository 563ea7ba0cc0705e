"""Edge cases of the queue loss: half precision, overflow, absent classes, an empty queue.

Most cases are compared with the loops of oracle.py in float64.
"""

import pytest
import torch

from moco.losses import contrastive_loss
from moco.losses.positives import PositiveSum, sample_positives
from tests import oracle
from tests.tiny import tiny_batch, tiny_model, unit_vectors

D, Q, C = 8, 24, 3


def compare_with_oracle(q, k, queue, queue_labels, labels, temperature=0.07, targets=None):
    """Return our loss and the oracle's for KCL or (with targets) TSC with --sep_t, with two sampled positives."""
    draws = torch.randint(2**62, (len(q), 2))
    queue_positives, target_positives = sample_positives(queue, queue_labels, labels, draws)
    fixed_copies, target_options = 0, {}
    if targets is not None:
        fixed_copies, target_positives = 1, PositiveSum(targets[labels], torch.ones(len(q), dtype=queue.dtype))
        target_options = {"targets": targets, "target_positives": target_positives, "target_weight": 0.2}
    ours = contrastive_loss(q, k, queue, queue_positives, temperature, **target_options)
    chosen = oracle.positives(labels.tolist(), queue_labels.tolist(), draws.tolist(), copies=0, always=fixed_copies)
    target_options.pop("target_positives", None)
    double = [x.double() for x in (q, k, queue)]
    if targets is not None:
        target_options |= {"targets": targets.double(), "target_row": list(range(C))}
    theirs = oracle.loss(*double, labels.tolist(), chosen, temperature, **target_options)
    return ours, sum(theirs)


@pytest.fixture
def batch():
    q, k, queue = (unit_vectors(6, D), unit_vectors(6, D), unit_vectors(D, Q, dim=0))
    return q, k, queue, torch.randint(0, C, (Q,)), torch.randint(0, C, (6,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_float32_loss(batch, dtype):
    """Only the features have half precision: the loss is within 1e-6 of the oracle on the same features."""
    q, k, queue, queue_labels, labels = batch
    q, k = q.to(dtype).requires_grad_(), k.to(dtype)
    ours, theirs = compare_with_oracle(q, k, queue.float(), queue_labels, labels, targets=unit_vectors(C, D).float())
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), theirs, rtol=1e-6, atol=1e-6)
    ours.loss.backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_change_the_loss(batch, dtype):
    q, k, queue, queue_labels, labels = batch
    q, k, queue, targets = q.float(), k.float(), queue.float(), unit_vectors(C, D).float()
    draws = torch.randint(2**62, (len(q), 2))
    queue_positives, _ = sample_positives(queue, queue_labels, labels, draws)
    target_positives = PositiveSum(targets[labels], torch.ones(len(q)))
    plain = contrastive_loss(q, k, queue, queue_positives, 0.07, targets, target_positives)
    with torch.autocast("cpu", dtype=dtype):
        autocast = contrastive_loss(q, k, queue, queue_positives, 0.07, targets, target_positives)
    assert autocast.loss.dtype == torch.float32
    assert torch.equal(autocast.loss, plain.loss)


def test_autocast_step_keeps_state_in_float32():
    """In a bfloat16 TSC step, queue, centroids and loss are float32 and close to those of a float32 step."""
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = tiny_model(targeted=True, sep_t=True).float()
        im_q, im_k, labels = tiny_batch()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert model.encoder_q(im_q.float()).dtype == (torch.bfloat16 if enabled else torch.float32)
            out = model(im_q.float(), im_k.float(), labels)
        assert out.q.dtype == out.loss.dtype == model.class_centroid.dtype == torch.float32
        torch.testing.assert_close(out.q.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(12))
        torch.testing.assert_close(model.class_centroid.norm(dim=1), torch.ones(3))
        results.append(out.loss)
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)


def test_loss_with_empty_queue_matches_oracle(batch):
    q, k, queue, _, labels = batch
    ours, theirs = compare_with_oracle(q, k, queue, torch.full((Q,), -1), labels)
    torch.testing.assert_close(ours.loss, theirs)


def test_loss_of_classes_absent_from_queue_matches_oracle(batch):
    q, k, queue, _, labels = batch
    ours, theirs = compare_with_oracle(q, k, queue, torch.zeros(Q, dtype=torch.long), labels)
    assert set(labels.tolist()) == {0, 1, 2}
    torch.testing.assert_close(ours.loss, theirs)


def test_loss_of_one_anchor_matches_oracle(batch):
    q, k, queue, queue_labels, labels = batch
    ours, theirs = compare_with_oracle(q[:1], k[:1], queue, queue_labels, labels[:1], targets=unit_vectors(C, D))
    torch.testing.assert_close(ours.loss, theirs)


def test_absent_class_keeps_centroid_and_gets_target():
    model = tiny_model(targeted=True, sep_t=True)
    model.queue_labels.clamp_(max=1)
    before = model.class_centroid[2].clone()
    im_q, im_k, _ = tiny_batch()
    assert model(im_q, im_k, torch.tensor([0, 1, 1, 0])).loss.isfinite()
    assert torch.equal(model.class_centroid[2], before)
    assert sorted(model.assignment.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_at_temperature_001_matches_oracle(batch, dtype):
    """The logits reach ±100. exp(100) overflows float32, so the loss must use log-softmax."""
    q, k, queue, queue_labels, labels = batch
    q, k = q.to(dtype), -q.to(dtype)  # the anchor's key is opposite to it
    queue = queue.to(dtype)
    queue[:, 0] = q[0]
    ours, theirs = compare_with_oracle(
        q, k, queue, queue_labels, labels, temperature=0.01, targets=unit_vectors(C, D).to(dtype)
    )
    assert ours.loss > 50
    torch.testing.assert_close(ours.loss.double(), theirs, rtol=1e-6, atol=0)
