"""The losses on queues so small that the numbers can be worked out on paper.

Temperature 1, everything along the axes of the plane, so every logit is 0, 1 or -1.
"""

import math

import pytest
import torch

from moco.losses import contrastive_loss
from moco.losses.positives import PositiveSum, all_positives, sample_positives

E = math.e
RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]

Q = torch.tensor([RIGHT])  # one anchor of class 0; its own key is the same vector: logit 1
QUEUE = torch.tensor([RIGHT, UP, LEFT, LEFT]).T  # logits 1, 0, -1, -1
QUEUE_LABELS = torch.tensor([0, 0, 1, -1])
LABELS = torch.tensor([0])
TARGETS = torch.tensor([UP, LEFT])  # of classes 0 and 1: logits 0, -1
Z_KCL = E + (E + 1 + 2 / E)  # own key, queue
Z_TSC = Z_KCL + 1 + 1 / E  # and the targets


def log_p(logit: float, z: float) -> float:
    return logit - math.log(z)


def assigned(copies: int) -> PositiveSum:
    return PositiveSum(copies * TARGETS[:1], torch.tensor([float(copies)]))


def test_kcl_with_more_positives_than_the_class_has_takes_them_all():
    draws = torch.randint(2**62, (1, 6))
    drawn, _ = sample_positives(QUEUE, QUEUE_LABELS, LABELS, draws)
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0)
    expected = -(log_p(1, Z_KCL) + log_p(1, Z_KCL) + log_p(0, Z_KCL)) / 3
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)
    assert out.loss_class.item() == pytest.approx(expected, rel=1e-6)
    assert out.loss_target.item() == 0


def test_num_positive_0_takes_the_whole_class():
    drawn = all_positives(QUEUE, QUEUE_LABELS, LABELS)
    assert drawn.count.tolist() == [2]
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0)
    assert out.loss.item() == pytest.approx(-(log_p(1, Z_KCL) * 2 + log_p(0, Z_KCL)) / 3, rel=1e-6)


def test_an_anchor_whose_class_is_not_in_the_queue_has_its_own_key():
    drawn, _ = sample_positives(QUEUE, QUEUE_LABELS, torch.tensor([2]), torch.randint(2**62, (1, 6)))
    assert drawn.count.tolist() == [0]
    assert contrastive_loss(Q, Q, QUEUE, drawn, 1.0).loss.item() == pytest.approx(-log_p(1, Z_KCL), rel=1e-6)


def test_tsc_sep_t_adds_the_target_to_the_drawn_positives():
    """--sep_t: own key, one drawn (LEFT, class 1 has one entry), the target: n = 3."""
    labels = torch.tensor([1])
    drawn, _ = sample_positives(QUEUE, QUEUE_LABELS, labels, torch.tensor([[12345]]))
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0, TARGETS, PositiveSum(TARGETS[1:], torch.ones(1)), target_weight=0.2)
    assert out.loss_class.item() == pytest.approx(-(log_p(1, Z_TSC) + log_p(-1, Z_TSC)) / 3, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-0.2 * log_p(-1, Z_TSC) / 3, rel=1e-6)
    assert out.loss.item() == pytest.approx(out.loss_class.item() + out.loss_target.item(), rel=1e-6)


def test_the_papers_form_divides_the_class_term_by_own_and_drawn_and_the_target_term_by_nothing():
    labels = torch.tensor([1])
    drawn, _ = sample_positives(QUEUE, QUEUE_LABELS, labels, torch.tensor([[12345]]))
    target = PositiveSum(TARGETS[1:], torch.ones(1))
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0, TARGETS, target, target_weight=0.2, form="paper")
    assert out.loss_class.item() == pytest.approx(-(log_p(1, Z_TSC) + log_p(-1, Z_TSC)) / 2, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-0.2 * log_p(-1, Z_TSC), rel=1e-6)


def test_for_kcl_the_two_forms_are_one():
    drawn = all_positives(QUEUE, QUEUE_LABELS, LABELS)
    forms = [contrastive_loss(Q, Q, QUEUE, drawn, 1.0, form=form).loss.item() for form in ("release", "paper")]
    assert forms[0] == forms[1]


def test_a_form_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'papre'"):
        contrastive_loss(Q, Q, QUEUE, all_positives(QUEUE, QUEUE_LABELS, LABELS), 1.0, form="papre")


def test_tsc_with_three_copies_of_each_target():
    """--tr 3: all six copies in the denominator, three of them positives: n = 1 + 2 + 3."""
    targets = TARGETS.repeat_interleave(3, dim=0)
    z = Z_KCL + 3 * (1 + 1 / E)
    drawn, _ = sample_positives(QUEUE, QUEUE_LABELS, LABELS, torch.randint(2**62, (1, 6)))
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0, targets, assigned(3))
    assert out.loss_class.item() == pytest.approx(-(2 * log_p(1, z) + log_p(0, z)) / 6, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-3 * log_p(0, z) / 6, rel=1e-6)


@pytest.mark.parametrize("copies", [1, 3])
def test_tsc_without_sep_t_draws_from_queue_and_targets_together(copies):
    """The pool: RIGHT, UP from the queue, then the copies of UP. Floyd's draws choose by remainder."""
    size = 2 + copies  # draws 0 and size-1: RIGHT and a target copy
    draws = torch.tensor([[0, size - 1]])
    drawn, from_targets = sample_positives(QUEUE, QUEUE_LABELS, LABELS, draws, TARGETS[:1], copies)
    assert drawn.vector.tolist() == [RIGHT] and drawn.count.tolist() == [1]
    assert from_targets.vector.tolist() == [UP] and from_targets.count.tolist() == [1]

    targets = TARGETS.repeat_interleave(copies, dim=0)
    z = Z_KCL + copies * (1 + 1 / E)
    out = contrastive_loss(Q, Q, QUEUE, drawn, 1.0, targets, from_targets)
    assert out.loss_class.item() == pytest.approx(-2 * log_p(1, z) / 3, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-log_p(0, z) / 3, rel=1e-6)


def test_key_rank_counts_the_logits_above_the_own_key():
    key = torch.tensor([UP])  # logit 0: RIGHT in the queue is above, UP ties and is not
    none = PositiveSum(torch.zeros(1, 2), torch.zeros(1))
    assert contrastive_loss(Q, key, QUEUE, none, 1.0).key_rank.tolist() == [1]
    targets = torch.tensor([RIGHT, RIGHT])
    assert contrastive_loss(Q, key, QUEUE, none, 1.0, targets, none).key_rank.tolist() == [3]
