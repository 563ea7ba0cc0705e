"""The losses of BCL and PaCo against loops in float64, their gradients, and their special cases."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from moco.losses import bcl_loss, paco_loss
from tests.one_stage import loops
from tests.tiny import unit_vectors

N, C, D = 6, 5, 4
LABELS = {
    "several images of a class": [0, 0, 1, 2, 1, 0],
    "one image of each class": [0, 1, 2, 3, 4, 0],
    "one class only": [3] * N,
}
WEIGHTS = {"alpha": 0.05, "beta": 0.9, "gamma": 0.4, "class_scale": 2.0, "temperature": 0.3}


def bcl_inputs(labels: list[int]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    views, prototypes = unit_vectors(N, 2, D, dim=2), unit_vectors(C, D)
    return views.requires_grad_(), torch.tensor(labels), prototypes.requires_grad_()


def paco_inputs(labels: list[int], queue_length: int = 7) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    anchors, queue = unit_vectors(N, D), unit_vectors(queue_length, D)
    queue_labels = torch.randint(-1, C, (queue_length,))  # -1: empty
    columns, labels = torch.cat([anchors, queue]), torch.tensor(labels)
    class_logits, log_prior = torch.randn(N, C, dtype=torch.float64), torch.rand(C, dtype=torch.float64).log()
    return (
        *(anchors.requires_grad_(), labels, class_logits.requires_grad_(), log_prior),
        *(columns.requires_grad_(), torch.cat([labels, queue_labels])),
    )


def assert_same_value_and_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    of = [tensor for tensor in inputs if tensor.requires_grad]
    for mine, other in zip(torch.autograd.grad(ours, of), torch.autograd.grad(theirs, of), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_bcl_matches_loops(labels, temperature):
    inputs = bcl_inputs(labels)
    assert_same_value_and_gradients(bcl_loss(*inputs, temperature), loops.bcl(*inputs, temperature), inputs)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("changed", [{}, {"gamma": 1.0}, {"alpha": 0.0}, {"class_scale": 1.0}], ids=str)
def test_paco_matches_loops(labels, changed):
    inputs, weights = paco_inputs(labels), WEIGHTS | changed
    assert_same_value_and_gradients(paco_loss(*inputs, **weights), loops.paco(*inputs, **weights), inputs)


def test_gradients_match_finite_differences():
    views, labels, prototypes = bcl_inputs([0, 0, 1, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda v, p: bcl_loss(v, labels, p), (views, prototypes))
    anchors, labels, class_logits, log_prior, columns, column_labels = paco_inputs([0, 0, 1, 2, 1, 0])

    def paco(anchors, class_logits, columns):
        return paco_loss(anchors, labels, class_logits, log_prior, columns, column_labels, **WEIGHTS)

    assert torch.autograd.gradcheck(paco, (anchors, class_logits, columns))


def test_paco_without_columns_is_cross_entropy_with_logit_adjustment():
    anchors, labels, class_logits, log_prior, columns, column_labels = paco_inputs([0, 0, 1, 2, 1, 0])
    loss = paco_loss(anchors, labels, class_logits, log_prior, columns, column_labels, alpha=0, gamma=0)
    torch.testing.assert_close(loss, cross_entropy(class_logits + log_prior, labels))


def test_single_anchor_without_queue_is_cross_entropy_in_paco():
    anchors, labels, class_logits, log_prior, _, _ = paco_inputs([0] * N)
    one = anchors[:1], labels[:1], class_logits[:1], log_prior, anchors[:1], labels[:1]
    loss = paco_loss(*one, alpha=0.05)
    torch.testing.assert_close(loss, cross_entropy(class_logits[:1] + log_prior, labels[:1]))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (anchors, class_logits)))


def test_losses_compute_half_precision_in_float32():
    views, labels, prototypes = bcl_inputs([0, 0, 1, 2, 1, 0])
    half = views.detach().half(), labels, prototypes.detach().half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = bcl_loss(*half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, bcl_loss(half[0].float(), labels, half[2].float()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"views": torch.zeros(N, 3, D)}, "views"),
        ({"labels": torch.zeros(N)}, "labels"),
        ({"prototypes": torch.zeros(C, D + 1)}, "prototypes"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bcl_refuses_invalid_arguments(wrong, message):
    arguments = dict(zip(("views", "labels", "prototypes"), bcl_inputs([0] * N), strict=True)) | wrong
    with pytest.raises(ValueError, match=message):
        bcl_loss(**arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": torch.zeros(N - 1, D)}, "columns"),
        ({"column_labels": torch.zeros(N, dtype=torch.long)}, "column_labels"),
        ({"log_prior": torch.zeros(C + 1)}, "log_prior"),
        ({"alpha": -1.0}, "alpha"),
        ({"class_scale": 0.0}, "class_scale"),
    ],
)
def test_paco_refuses_invalid_arguments(wrong, message):
    names = ("anchors", "labels", "class_logits", "log_prior", "columns", "column_labels")
    arguments = dict(zip(names, paco_inputs([0] * N), strict=True)) | {"alpha": 0.05} | wrong
    with pytest.raises(ValueError, match=message):
        paco_loss(**arguments)


def test_paco_computes_half_precision_in_float32():
    inputs = [t.detach().half() if t.is_floating_point() else t for t in paco_inputs([0, 0, 1, 2, 1, 0])]
    with torch.autocast("cpu", torch.bfloat16):
        loss = paco_loss(*inputs, **WEIGHTS)
    assert loss.dtype == torch.float32
    full = [t.float() if t.is_floating_point() else t for t in inputs]
    torch.testing.assert_close(loss, paco_loss(*full, **WEIGHTS))
