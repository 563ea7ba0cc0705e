"""KCL and InBatchKCL in a user's own loop: wrong arguments and batches are refused before the model changes."""

import copy

import pytest
import torch
from torch import nn

from moco.builder import KCL
from moco.in_batch import InBatchKCL
from tests.tiny import TinyEncoder, tiny_batch, tiny_model, unit_vectors


def in_batch_model(**options) -> InBatchKCL:
    """Return a float64 in-batch model on TinyEncoder with D=4 and C=3."""
    defaults = {"dim": 4, "num_classes": 3, "targets": unit_vectors(3, 4)}
    return InBatchKCL(TinyEncoder, **(defaults | options)).double()


MODELS = pytest.mark.parametrize("make", [tiny_model, in_batch_model])


@MODELS
@pytest.mark.parametrize(
    "argument",
    [
        *({"dim": 0}, {"num_classes": 0}, {"T": 0}, {"T": -0.1}, {"T": float("nan")}, {"tr": 0}, {"tr": 1.5}),
        *({"tw": -1.0}, {"num_positive": -1}, {"parts": 0}, {"assignment_interval": -1}, {"loss_form": "other"}),
    ],
    ids=str,
)
def test_argument_out_of_range_is_refused(make, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        make(**argument)


@pytest.mark.parametrize("argument", [{"K": 0}, {"m": -0.1}, {"m": 1.5}], ids=str)
def test_queue_argument_out_of_range_is_refused(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        tiny_model(**argument)


@pytest.mark.parametrize("model", [KCL, InBatchKCL])
def test_mlp_needs_a_linear_fc(model):
    with pytest.raises(ValueError, match="fc"):
        model(lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)), dim=4, mlp=True)


@MODELS
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("wrong", [-1, 3])
def test_label_out_of_range_is_refused_before_the_model_changes(make, targeted, wrong):
    """Label -1 would match empty queue slots, and the target of the last class."""
    model = make(targeted=targeted)
    before = copy.deepcopy(model.state_dict())
    im_q, im_k, labels = tiny_batch()
    labels[2] = wrong
    with pytest.raises(ValueError, match=str(wrong)):
        model(im_q, im_k, labels)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@MODELS
def test_unsupervised_model_ignores_the_values_of_labels(make):
    im_q, im_k, _ = tiny_batch()
    make(supervised=False)(im_q, im_k, torch.full((4,), -1))


@MODELS
def test_batch_of_wrong_shape_or_dtype_is_refused_before_the_model_changes(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    im_q, im_k, labels = tiny_batch()
    for batch in ((im_q, im_k[:1], labels), (im_q, im_k, labels[:, None]), (im_q, im_k, labels.double())):
        with pytest.raises(ValueError, match="labels"):
            model(*batch)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_queue_that_is_no_multiple_of_the_batch_is_refused_before_the_model_changes():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="12"):
        model(*tiny_batch(size=5))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@MODELS
def test_int32_labels_equal_int64_labels(make):
    model, (im_q, im_k, labels) = make(targeted=True), tiny_batch()
    other = copy.deepcopy(model)
    assert torch.equal(model(im_q, im_k, labels).loss, other(im_q, im_k, labels.int()).loss)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@MODELS
def test_diverged_batch_does_not_spoil_later_steps(make):
    """The loss of the batch itself is NaN, which a loop can see; centroids and queue stay finite."""
    model, (im_q, im_k, labels) = make(targeted=True), tiny_batch()
    assert not model(torch.full_like(im_q, torch.nan), torch.full_like(im_k, torch.nan), labels).loss.isfinite()
    assert model(im_q, im_k, labels).loss.isfinite()
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@MODELS
def test_step_in_inference_mode_is_refused_and_training_continues(make):
    model, batch = make(targeted=True), tiny_batch()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        model(*batch)
    model(*batch).loss.backward()


def test_targets_of_an_unsupervised_in_batch_model_are_refused():
    with pytest.raises(ValueError, match="supervised"):
        in_batch_model(supervised=False, targeted=True)(*tiny_batch())
