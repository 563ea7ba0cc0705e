"""Invariances of the loss, and the case in which TSC equals KCL."""

import pytest
import torch

from moco.losses import contrastive_loss
from moco.losses.positives import PositiveSum, all_positives, sample_positives
from tests.tiny import tiny_batch, tiny_model, unit_vectors

N, D, Q, C, K = 6, 5, 30, 3, 4
FORMS = pytest.mark.parametrize("form", ["release", "paper"])


@pytest.fixture(params=range(3))
def batch(request) -> dict:
    torch.manual_seed(request.param)
    return {
        "q": unit_vectors(N, D),
        "k": unit_vectors(N, D),
        "queue": unit_vectors(D, Q, dim=0),
        "queue_labels": torch.randint(0, C, (Q,)),
        "labels": torch.randint(0, C, (N,)),
        "draws": torch.randint(2**62, (N, K)),
        "targets": unit_vectors(C, D),
    }


def tsc_loss(q, k, queue, queue_labels, labels, draws, targets, form="release"):
    queue_positives, _ = sample_positives(queue, queue_labels, labels, draws)
    target_positives = PositiveSum(targets[labels], torch.ones(len(q), dtype=q.dtype))
    return contrastive_loss(q, k, queue, queue_positives, 0.1, targets, target_positives, 0.2, form)


@FORMS
def test_loss_is_invariant_to_batch_order(batch, form):
    order = torch.randperm(N)
    permuted = batch | {name: batch[name][order] for name in ("q", "k", "labels", "draws")}
    before, after = tsc_loss(**batch, form=form), tsc_loss(**permuted, form=form)
    torch.testing.assert_close(after[:3], before[:3])
    assert torch.equal(after.key_rank, before.key_rank[order])


@FORMS
def test_loss_is_invariant_to_rotation(batch, form):
    rotation, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    rotated = batch | {name: batch[name] @ rotation for name in ("q", "k", "targets")}
    rotated["queue"] = rotation.T @ batch["queue"]
    torch.testing.assert_close(tsc_loss(**rotated, form=form)[:3], tsc_loss(**batch, form=form)[:3])


def test_loss_is_invariant_to_queue_order(batch):
    order = torch.randperm(Q)
    permuted = batch | {"queue": batch["queue"][:, order], "queue_labels": batch["queue_labels"][order]}
    before, after = (
        contrastive_loss(b["q"], b["k"], b["queue"], all_positives(b["queue"], b["queue_labels"], b["labels"]), 0.1)
        for b in (batch, permuted)
    )
    torch.testing.assert_close(after, before)


def test_tsc_without_targets_and_weight_0_is_kcl(batch):
    """The paper's form is exactly KCL. The release form still counts the absent target as a positive in its mean."""
    q, k, queue, labels = (batch[name] for name in ("q", "k", "queue", "labels"))
    queue_positives, _ = sample_positives(queue, batch["queue_labels"], labels, batch["draws"])
    assert queue_positives.count.tolist() == [K] * N
    target_positives = PositiveSum(batch["targets"][labels], torch.ones(N, dtype=q.dtype))
    kcl = contrastive_loss(q, k, queue, queue_positives, 0.1)
    no_targets = batch["targets"][:0]
    paper, release = (
        contrastive_loss(q, k, queue, queue_positives, 0.1, no_targets, target_positives, 0.0, f)
        for f in ("paper", "release")
    )
    torch.testing.assert_close(paper.loss, kcl.loss)
    torch.testing.assert_close(release.loss, kcl.loss * (1 + K) / (2 + K))


@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True}, {"supervised": False}], ids=str)
def test_step_is_invariant_to_feature_scale(options):
    """Features of both encoders that are five times as long give the same loss, queue and centroids."""
    outcomes = []
    for scale in (1, 5):
        torch.manual_seed(0)
        model = tiny_model(**options)
        for encoder in (model.encoder_q, model.encoder_k):
            for parameter in encoder.parameters():
                parameter.data.mul_(scale)
        outcomes.append((model(*tiny_batch()).loss, model.queue, model.class_centroid))
    torch.testing.assert_close(*outcomes)


def test_step_is_invariant_to_batch_order():
    outcomes = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        torch.manual_seed(0)
        model = tiny_model(targeted=True, sep_t=True, num_positive=0)
        im_q, im_k, labels = tiny_batch()
        out = model(im_q[order], im_k[order], labels[order])
        outcomes.append((out.loss, out.q[order.argsort()], model.class_centroid))
    torch.testing.assert_close(*outcomes)


def test_larger_target_weight_moves_query_towards_target(batch):
    """A gradient step with a large target weight increases the mean cosine of query and target more."""
    cosine_after_step = {}
    for weight in (0.0, 10.0):
        q = batch["q"].clone().requires_grad_()
        queue_positives, _ = sample_positives(batch["queue"], batch["queue_labels"], batch["labels"], batch["draws"])
        target = batch["targets"][batch["labels"]]
        target_positives = PositiveSum(target, torch.ones(N, dtype=q.dtype))
        contrastive_loss(
            q, batch["k"], batch["queue"], queue_positives, 0.1, batch["targets"], target_positives, weight
        ).loss.backward()
        cosine_after_step[weight] = torch.nn.functional.cosine_similarity(q.detach() - 0.1 * q.grad, target).mean()
    assert cosine_after_step[10.0] > cosine_after_step[0.0]
