"""What must hold whatever the numbers are: symmetries of the loss, and where TSC becomes KCL."""

import pytest
import torch

from moco.losses import contrastive_loss
from moco.losses.positives import PositiveSum, all_positives, sample_positives
from tests.tiny import tiny_batch, tiny_model, unit

N, D, Q, C, K = 6, 5, 30, 3, 4
FORMS = pytest.mark.parametrize("form", ["release", "paper"])


@pytest.fixture(params=range(3))
def batch(request) -> dict:
    torch.manual_seed(request.param)
    return {
        "q": unit(N, D),
        "k": unit(N, D),
        "queue": unit(D, Q, dim=0),
        "queue_labels": torch.randint(0, C, (Q,)),
        "labels": torch.randint(0, C, (N,)),
        "draws": torch.randint(2**62, (N, K)),
        "targets": unit(C, D),
    }


def tsc(q, k, queue, queue_labels, labels, draws, targets, form="release"):
    drawn, _ = sample_positives(queue, queue_labels, labels, draws)
    assigned = PositiveSum(targets[labels], torch.ones(len(q), dtype=q.dtype))
    return contrastive_loss(q, k, queue, drawn, 0.1, targets, assigned, 0.2, form)


@FORMS
def test_permuting_the_batch_permutes_the_ranks_and_leaves_the_loss(batch, form):
    order = torch.randperm(N)
    permuted = batch | {name: batch[name][order] for name in ("q", "k", "labels", "draws")}
    before, after = tsc(**batch, form=form), tsc(**permuted, form=form)
    torch.testing.assert_close(after[:3], before[:3])
    assert torch.equal(after.key_rank, before.key_rank[order])


@FORMS
def test_rotating_everything_leaves_the_loss(batch, form):
    rotation, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    rotated = batch | {name: batch[name] @ rotation for name in ("q", "k", "targets")}
    rotated["queue"] = rotation.T @ batch["queue"]
    torch.testing.assert_close(tsc(**rotated, form=form)[:3], tsc(**batch, form=form)[:3])


def test_the_place_of_a_key_in_the_queue_does_not_matter(batch):
    order = torch.randperm(Q)
    moved = batch | {"queue": batch["queue"][:, order], "queue_labels": batch["queue_labels"][order]}
    before, after = (
        contrastive_loss(b["q"], b["k"], b["queue"], all_positives(b["queue"], b["queue_labels"], b["labels"]), 0.1)
        for b in (batch, moved)
    )
    torch.testing.assert_close(after, before)


def test_tsc_without_targets_in_the_denominator_and_with_weight_0_is_kcl(batch):
    """In the paper's form exactly; in the release's up to n: the absent target still counts as a positive."""
    q, k, queue, labels = (batch[name] for name in ("q", "k", "queue", "labels"))
    drawn, _ = sample_positives(queue, batch["queue_labels"], labels, batch["draws"])
    assert drawn.count.tolist() == [K] * N
    assigned = PositiveSum(batch["targets"][labels], torch.ones(N, dtype=q.dtype))
    kcl = contrastive_loss(q, k, queue, drawn, 0.1)
    none = batch["targets"][:0]
    paper, release = (contrastive_loss(q, k, queue, drawn, 0.1, none, assigned, 0.0, f) for f in ("paper", "release"))
    torch.testing.assert_close(paper.loss, kcl.loss)
    torch.testing.assert_close(release.loss, kcl.loss * (1 + K) / (2 + K))


@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True}, {"supervised": False}], ids=str)
def test_scaling_the_features_changes_nothing(options):
    """Both encoders' features five times as long: the same loss, queue and centroids."""
    outcomes = []
    for scale in (1, 5):
        torch.manual_seed(0)
        model = tiny_model(**options)
        for encoder in (model.encoder_q, model.encoder_k):
            for parameter in encoder.parameters():
                parameter.data.mul_(scale)
        outcomes.append((model(*tiny_batch()).loss, model.queue, model.class_centroid))
    torch.testing.assert_close(*outcomes)


def test_permuting_the_batch_permutes_the_queries_of_a_step():
    outcomes = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        torch.manual_seed(0)
        model = tiny_model(targeted=True, sep_t=True, num_positive=0)
        im_q, im_k, labels = tiny_batch()
        out = model(im_q[order], im_k[order], labels[order])
        outcomes.append((out.loss, out.q[order.argsort()], model.class_centroid))
    torch.testing.assert_close(*outcomes)


def test_more_weight_on_the_target_draws_the_query_towards_it(batch):
    """The gradient step of TSC with a heavy target term raises the mean cosine of query and target."""
    moved = {}
    for weight in (0.0, 10.0):
        q = batch["q"].clone().requires_grad_()
        drawn, _ = sample_positives(batch["queue"], batch["queue_labels"], batch["labels"], batch["draws"])
        target = batch["targets"][batch["labels"]]
        assigned = PositiveSum(target, torch.ones(N, dtype=q.dtype))
        contrastive_loss(q, batch["k"], batch["queue"], drawn, 0.1, batch["targets"], assigned, weight).loss.backward()
        moved[weight] = torch.nn.functional.cosine_similarity(q.detach() - 0.1 * q.grad, target).mean()
    assert moved[10.0] > moved[0.0]
