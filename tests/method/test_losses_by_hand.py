"""The queue losses on a queue of four keys, computed by hand.

The temperature is 1 and all vectors are along the axes of the plane, so that every logit is 0, 1 or -1.
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


def target_positives(copies: int) -> PositiveSum:
    return PositiveSum(copies * TARGETS[:1], torch.tensor([float(copies)]))


def test_kcl_uses_all_positives_of_a_small_class():
    draws = torch.randint(2**62, (1, 6))
    queue_positives, _ = sample_positives(QUEUE, QUEUE_LABELS, LABELS, draws)
    out = contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0)
    expected = -(log_p(1, Z_KCL) + log_p(1, Z_KCL) + log_p(0, Z_KCL)) / 3
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)
    assert out.loss_class.item() == pytest.approx(expected, rel=1e-6)
    assert out.loss_target.item() == 0


def test_num_positive_0_uses_the_whole_class():
    queue_positives = all_positives(QUEUE, QUEUE_LABELS, LABELS)
    assert queue_positives.count.tolist() == [2]
    out = contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0)
    assert out.loss.item() == pytest.approx(-(log_p(1, Z_KCL) * 2 + log_p(0, Z_KCL)) / 3, rel=1e-6)


def test_anchor_without_class_in_queue_uses_own_key():
    queue_positives, _ = sample_positives(QUEUE, QUEUE_LABELS, torch.tensor([2]), torch.randint(2**62, (1, 6)))
    assert queue_positives.count.tolist() == [0]
    assert contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0).loss.item() == pytest.approx(-log_p(1, Z_KCL), rel=1e-6)


def test_sep_t_adds_target_to_sampled_positives():
    """The positives are the own key, one sampled key (LEFT, the only one of class 1) and the target: n = 3."""
    labels = torch.tensor([1])
    queue_positives, _ = sample_positives(QUEUE, QUEUE_LABELS, labels, torch.tensor([[12345]]))
    out = contrastive_loss(
        Q, Q, QUEUE, queue_positives, 1.0, TARGETS, PositiveSum(TARGETS[1:], torch.ones(1)), target_weight=0.2
    )
    assert out.loss_class.item() == pytest.approx(-(log_p(1, Z_TSC) + log_p(-1, Z_TSC)) / 3, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-0.2 * log_p(-1, Z_TSC) / 3, rel=1e-6)
    assert out.loss.item() == pytest.approx(out.loss_class.item() + out.loss_target.item(), rel=1e-6)


def test_paper_form_averages_only_the_class_term():
    labels = torch.tensor([1])
    queue_positives, _ = sample_positives(QUEUE, QUEUE_LABELS, labels, torch.tensor([[12345]]))
    target = PositiveSum(TARGETS[1:], torch.ones(1))
    out = contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0, TARGETS, target, target_weight=0.2, form="paper")
    assert out.loss_class.item() == pytest.approx(-(log_p(1, Z_TSC) + log_p(-1, Z_TSC)) / 2, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-0.2 * log_p(-1, Z_TSC), rel=1e-6)


def test_loss_forms_are_equal_for_kcl():
    queue_positives = all_positives(QUEUE, QUEUE_LABELS, LABELS)
    forms = [
        contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0, form=form).loss.item() for form in ("release", "paper")
    ]
    assert forms[0] == forms[1]


def test_unknown_loss_form_is_refused():
    with pytest.raises(ValueError, match="'papre'"):
        contrastive_loss(Q, Q, QUEUE, all_positives(QUEUE, QUEUE_LABELS, LABELS), 1.0, form="papre")


def test_tsc_with_three_target_copies():
    """With --tr 3 all six copies are in the denominator, and three of them are positives: n = 1 + 2 + 3."""
    targets = TARGETS.repeat_interleave(3, dim=0)
    z = Z_KCL + 3 * (1 + 1 / E)
    queue_positives, _ = sample_positives(QUEUE, QUEUE_LABELS, LABELS, torch.randint(2**62, (1, 6)))
    out = contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0, targets, target_positives(3))
    assert out.loss_class.item() == pytest.approx(-(2 * log_p(1, z) + log_p(0, z)) / 6, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-3 * log_p(0, z) / 6, rel=1e-6)


@pytest.mark.parametrize("copies", [1, 3])
def test_tsc_without_sep_t_samples_from_queue_and_targets(copies):
    """The pool is RIGHT and UP from the queue, then the copies of UP. Floyd's algorithm uses a draw's remainder."""
    size = 2 + copies  # the draws 0 and size - 1 select RIGHT and a target copy
    draws = torch.tensor([[0, size - 1]])
    queue_positives, from_targets = sample_positives(QUEUE, QUEUE_LABELS, LABELS, draws, TARGETS[:1], copies)
    assert queue_positives.vector.tolist() == [RIGHT] and queue_positives.count.tolist() == [1]
    assert from_targets.vector.tolist() == [UP] and from_targets.count.tolist() == [1]

    targets = TARGETS.repeat_interleave(copies, dim=0)
    z = Z_KCL + copies * (1 + 1 / E)
    out = contrastive_loss(Q, Q, QUEUE, queue_positives, 1.0, targets, from_targets)
    assert out.loss_class.item() == pytest.approx(-2 * log_p(1, z) / 3, rel=1e-6)
    assert out.loss_target.item() == pytest.approx(-log_p(0, z) / 3, rel=1e-6)


def test_key_rank_counts_logits_above_own_key():
    key = torch.tensor([UP])  # its logit is 0: RIGHT in the queue ranks above it, UP ties
    no_positives = PositiveSum(torch.zeros(1, 2), torch.zeros(1))
    assert contrastive_loss(Q, key, QUEUE, no_positives, 1.0).key_rank.tolist() == [1]
    targets = torch.tensor([RIGHT, RIGHT])
    assert contrastive_loss(Q, key, QUEUE, no_positives, 1.0, targets, no_positives).key_rank.tolist() == [3]
