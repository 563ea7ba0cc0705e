"""The loss where numbers overflow, classes are absent and queues are empty: finite, and right.

Each case is compared with the loops of oracle.py in float64.
"""

import pytest
import torch

from moco.losses import contrastive_loss
from moco.losses.positives import PositiveSum, sample_positives
from tests import oracle
from tests.tiny import tiny_batch, tiny_model, unit

D, Q, C = 8, 24, 3


def both(q, k, queue, queue_labels, labels, temperature=0.07, targets=None):
    """Our loss and the oracle's, KCL or (with targets) TSC with --sep_t, two positives drawn."""
    draws = torch.randint(2**62, (len(q), 2))
    drawn, assigned = sample_positives(queue, queue_labels, labels, draws)
    always, tsc = 0, {}
    if targets is not None:
        always, assigned = 1, PositiveSum(targets[labels], torch.ones(len(q), dtype=queue.dtype))
        tsc = {"targets": targets, "assigned": assigned, "target_weight": 0.2}
    ours = contrastive_loss(q, k, queue, drawn, temperature, **tsc)
    chosen = oracle.positives(labels.tolist(), queue_labels.tolist(), draws.tolist(), copies=0, always=always)
    tsc.pop("assigned", None)
    double = [x.double() for x in (q, k, queue)]
    if targets is not None:
        tsc |= {"targets": targets.double(), "target_row": list(range(C))}
    theirs = oracle.loss(*double, labels.tolist(), chosen, temperature, **tsc)
    return ours, sum(theirs)


@pytest.fixture
def batch():
    q, k, queue = (unit(6, D), unit(6, D), unit(D, Q, dim=0))
    return q, k, queue, torch.randint(0, C, (Q,)), torch.randint(0, C, (6,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_the_float32_loss(batch, dtype):
    """Features rounded to half precision, everything after them is not: 1e-6 from the oracle on the same features."""
    q, k, queue, queue_labels, labels = batch
    q, k = q.to(dtype).requires_grad_(), k.to(dtype)
    ours, theirs = both(q, k, queue.float(), queue_labels, labels, targets=unit(C, D).float())
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), theirs, rtol=1e-6, atol=1e-6)
    ours.loss.backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_loss(batch, dtype):
    q, k, queue, queue_labels, labels = batch
    q, k, queue, targets = q.float(), k.float(), queue.float(), unit(C, D).float()
    draws = torch.randint(2**62, (len(q), 2))
    drawn, _ = sample_positives(queue, queue_labels, labels, draws)
    assigned = PositiveSum(targets[labels], torch.ones(len(q)))
    plain = contrastive_loss(q, k, queue, drawn, 0.07, targets, assigned)
    with torch.autocast("cpu", dtype=dtype):
        cast = contrastive_loss(q, k, queue, drawn, 0.07, targets, assigned)
    assert cast.loss.dtype == torch.float32
    assert torch.equal(cast.loss, plain.loss)


def test_under_autocast_only_the_encoders_run_in_half_precision():
    """A TSC step in bfloat16: queue, centroids and loss are float32, and near the float32 step's."""
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


def test_a_queue_that_is_still_empty(batch):
    q, k, queue, _, labels = batch
    ours, theirs = both(q, k, queue, torch.full((Q,), -1), labels)
    torch.testing.assert_close(ours.loss, theirs)


def test_anchors_whose_class_is_not_in_the_queue(batch):
    q, k, queue, _, labels = batch
    ours, theirs = both(q, k, queue, torch.zeros(Q, dtype=torch.long), labels)
    assert set(labels.tolist()) == {0, 1, 2}
    torch.testing.assert_close(ours.loss, theirs)


def test_one_anchor(batch):
    q, k, queue, queue_labels, labels = batch
    ours, theirs = both(q[:1], k[:1], queue, queue_labels, labels[:1], targets=unit(C, D))
    torch.testing.assert_close(ours.loss, theirs)


def test_a_class_missing_from_the_data_keeps_its_centroid_and_still_gets_a_target():
    model = tiny_model(targeted=True, sep_t=True)
    model.queue_labels.clamp_(max=1)
    before = model.class_centroid[2].clone()
    im_q, im_k, _ = tiny_batch()
    assert model(im_q, im_k, torch.tensor([0, 1, 1, 0])).loss.isfinite()
    assert torch.equal(model.class_centroid[2], before)
    assert sorted(model.assignment.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_temperature_of_a_hundredth(batch, dtype):
    """Logits of ±100: exp(100) is beyond float32 too, so only a log-softmax survives."""
    q, k, queue, queue_labels, labels = batch
    q, k = q.to(dtype), -q.to(dtype)  # the own key as far away as it can be
    queue = queue.to(dtype)
    queue[:, 0] = q[0]
    ours, theirs = both(q, k, queue, queue_labels, labels, temperature=0.01, targets=unit(C, D).to(dtype))
    assert ours.loss > 50
    torch.testing.assert_close(ours.loss.double(), theirs, rtol=1e-6, atol=0)
