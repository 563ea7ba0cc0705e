"""`in_batch_target_loss` (in-batch TSC as in the paper) against the loops of loops.py in float64."""

import pytest
import torch

from moco.losses import in_batch_loss, in_batch_target_loss
from moco.losses.positives import RANDOM_INT_BOUND
from tests.in_batch import BOTH_DENOMINATORS, C, D, N, assert_close, gradients, loops, seeded_generator
from tests.tiny import unit_vectors

pytestmark = pytest.mark.usefixtures("block")


@pytest.fixture(params=[[2, 0, 1], [0, 0, 9]], ids=["one each", "two, and none"])
def inputs(batch, request) -> dict:
    targets = {"targets": unit_vectors(C, D).requires_grad_(), "target_class": torch.tensor(request.param)}
    return batch | targets | {"target_weight": 0.2}


@BOTH_DENOMINATORS
@pytest.mark.parametrize("num_positive", [0, 2, 12])
def test_terms_and_gradients_match_loops(inputs, num_positive, unbiased):
    draws = torch.randint(RANDOM_INT_BOUND, (2 * N, num_positive), generator=seeded_generator()).tolist()
    ours = in_batch_target_loss(
        **inputs, num_positive=num_positive, temperature=0.3, unbiased=unbiased, generator=seeded_generator()
    )
    theirs = loops.target_loss(*inputs.values(), num_positive, 0.3, unbiased, draws)
    assert_close([ours.loss_class, ours.loss_target], list(theirs))
    assert_close(gradients(ours.loss, inputs), gradients(sum(theirs), inputs))


def test_only_the_total_loss_requires_grad(inputs):
    terms = in_batch_target_loss(**inputs)
    assert_close(terms.loss, terms.loss_class + terms.loss_target)
    assert [term.requires_grad for term in terms] == [True, False, False]


def test_zero_target_weight_keeps_targets_as_negatives(batch):
    """With weight 0 the loss is KCL with the targets as additional negatives in the denominator."""
    targets, other_classes = unit_vectors(C, D), torch.arange(C) + 100
    terms = in_batch_target_loss(
        **batch, targets=targets, target_class=other_classes, target_weight=0.0, num_positive=2
    )
    assert terms.loss_target == 0
    assert terms.loss > in_batch_loss(**batch, num_positive=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(inputs, dtype):
    half_inputs = {name: v.detach().to(dtype) if name in ("views", "targets") else v for name, v in inputs.items()}
    full_inputs = {name: v.float() if name in ("views", "targets") else v for name, v in half_inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = in_batch_target_loss(**half_inputs)
    assert terms.loss.dtype == torch.float32 and torch.equal(terms.loss, in_batch_target_loss(**full_inputs).loss)
