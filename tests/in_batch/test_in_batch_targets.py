"""`in_batch_target_loss`, the paper's TSC in the batch, against the loops of loops.py in float64."""

import pytest
import torch

from moco.losses import in_batch_loss, in_batch_target_loss
from moco.losses.positives import LARGEST_DRAW
from tests.in_batch import BOTH, C, D, N, close, gradients, loops, seeded
from tests.tiny import unit

pytestmark = pytest.mark.usefixtures("block")


@pytest.fixture(params=[[2, 0, 1], [0, 0, 9]], ids=["one each", "two, and none"])
def given(batch, request) -> dict:
    targets = {"targets": unit(C, D).requires_grad_(), "target_class": torch.tensor(request.param)}
    return batch | targets | {"target_weight": 0.2}


@BOTH
@pytest.mark.parametrize("num_positive", [0, 2, 12])
def test_value_parts_and_gradients_are_the_loops(given, num_positive, unbiased):
    draws = torch.randint(LARGEST_DRAW, (2 * N, num_positive), generator=seeded()).tolist()
    ours = in_batch_target_loss(
        **given, num_positive=num_positive, temperature=0.3, unbiased=unbiased, generator=seeded()
    )
    theirs = loops.target_loss(*given.values(), num_positive, 0.3, unbiased, draws)
    close([ours.loss_class, ours.loss_target], list(theirs))
    close(gradients(ours.loss, given), gradients(sum(theirs), given))


def test_only_the_loss_has_a_gradient(given):
    terms = in_batch_target_loss(**given)
    close(terms.loss, terms.loss_class + terms.loss_target)
    assert [term.requires_grad for term in terms] == [True, False, False]


def test_without_weight_targets_are_other_classes_images_alone(batch):
    """Weight 0 leaves KCL, with the targets in the denominator as rows that are nobody's positives."""
    targets, far = unit(C, D), torch.arange(C) + 100
    terms = in_batch_target_loss(**batch, targets=targets, target_class=far, target_weight=0.0, num_positive=2)
    assert terms.loss_target == 0
    assert terms.loss > in_batch_loss(**batch, num_positive=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(given, dtype):
    half = {name: v.detach().to(dtype) if name in ("views", "targets") else v for name, v in given.items()}
    full = {name: v.float() if name in ("views", "targets") else v for name, v in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = in_batch_target_loss(**half)
    assert terms.loss.dtype == torch.float32 and torch.equal(terms.loss, in_batch_target_loss(**full).loss)
