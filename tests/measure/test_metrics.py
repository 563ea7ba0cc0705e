"""Accuracies, running means and calibration, computed by hand."""

import numpy as np
import pytest
import torch

from tests.refusals import refusal
from utils.distributed import collectives
from utils.measure.metrics import Calibration, ClassAccuracy, Means, in_top_k, rank_of_label, shots

CPU = torch.device("cpu")


def test_rank_of_label_counts_larger_logits():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    assert rank_of_label(logits, torch.tensor([2, 1])).tolist() == [1, 2]  # a tied logit ranks above the label
    assert rank_of_label(logits, torch.tensor([0, 2])).tolist() == [0, 0]


def test_tied_or_nan_logits_are_not_correct():
    nan = float("nan")
    logits = torch.tensor([[1.0, 1.0, 0.0], [nan, 1.0, 0.0], [nan, nan, nan], [1.0, nan, 0.0]])
    rank = rank_of_label(logits, torch.zeros(4, dtype=torch.long))
    assert rank.tolist()[::3] == [1, 1]
    assert in_top_k(rank, 1).item() == 0 and in_top_k(rank, 5).item() == 50  # all three classes are among the top five


def test_top_k_accuracy_is_in_percent():
    assert in_top_k(torch.tensor([0, 1, 4, 5]), 1).item() == 25
    assert in_top_k(torch.tensor([0, 1, 4, 5]), 5).item() == 75


def test_shot_groups_at_their_bounds():
    """Many: more than 100 training images. Few: fewer than 20."""
    groups = shots(np.array([101, 100, 20, 19]))
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "many": [True, False, False, False],
        "medium": [False, True, True, False],
        "few": [False, False, False, True],
    }


def test_class_accuracy_summary_by_hand():
    """Correct: 1 of 2 for class 0 (many), 1 of 1 for class 1 (few). Class 2 (few) has no test image."""
    logits = torch.eye(3)[torch.tensor([0, 1, 1])]  # predictions 0, 1, 1
    accuracy = ClassAccuracy(3, CPU)
    accuracy.add(logits[:2], torch.tensor([0, 0]))
    accuracy.add(logits[2:], torch.tensor([1]))
    summary = accuracy.summary(np.array([200, 5, 5]))
    assert summary == {
        "acc1": pytest.approx(200 / 3),
        "acc5": 100.0,
        "many": 50.0,
        "medium": None,
        "few": 100.0,
        "balanced": 75.0,
        "worst": 50.0,
        "harmonic": pytest.approx(200 / 3),
        "spread": 25.0,
        "per_class": [50.0, 100.0, None],
    }


def test_spread_is_the_standard_deviation_over_tested_classes():
    """A loop over the classes gives the same. Class 4 has no test image."""
    labels = torch.arange(40) % 4
    predictions = torch.where(torch.arange(40) % 7 < labels, labels, 4)
    accuracy = ClassAccuracy(5, CPU)
    accuracy.add(torch.eye(5)[predictions], labels)
    classes = []
    for c in range(4):
        hits = [int(p == y) for p, y in zip(predictions.tolist(), labels.tolist(), strict=True) if y == c]
        classes.append(100 * sum(hits) / len(hits))
    mean = sum(classes) / 4
    expected = (sum((value - mean) ** 2 for value in classes) / 4) ** 0.5
    assert expected > 10
    assert accuracy.summary(np.full(5, 30))["spread"] == pytest.approx(expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_logits_are_refused(value):
    logits = torch.eye(3)
    logits[1, 2] = value
    accuracy = ClassAccuracy(3, CPU, "epoch 2, val")
    accuracy.add(logits, torch.arange(3))
    refusal(lambda: accuracy.summary(np.array([200, 5, 5])), "epoch 2, val", "1 of 3", "logits")


def test_all_ranks_refuse_non_finite_logits_of_one(monkeypatch):
    """All ranks raise together. A rank that continued alone would wait for the others forever."""
    other = torch.zeros(4, 3)
    other[2:, 0] = 1  # one image, without finite logits
    monkeypatch.setattr(collectives, "sum_over_ranks", lambda mine: mine + other)
    accuracy = ClassAccuracy(3, CPU)
    accuracy.add(torch.eye(3), torch.arange(3))
    refusal(lambda: accuracy.summary(np.array([200, 5, 5])), "1 of 4")


def test_means_weight_batches_by_size():
    means = Means("epoch", CPU)
    means.add(3, loss=torch.tensor(1.0), top1=torch.tensor(50.0))
    means.add(1, loss=torch.tensor(5.0), top1=torch.tensor(100.0))
    assert means.read() == {"loss": 2.0, "top1": 62.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_non_finite_loss_is_named(value):
    means = Means("Epoch: [3/9]", CPU)
    for loss in (1.0, value, value, 1.0):
        means.add(1, loss=torch.tensor(loss))
    refusal(means.read, "Epoch: [3/9]", "step 2", "loss")


def test_calibration_error_by_hand():
    """Three images at confidence 0.9, two correct; one at 0.5, incorrect: (|2 - 2.7| + |0 - 0.5|) / 4."""
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.5]).double()
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    calibration = Calibration(CPU)
    calibration.add(logits[:3], torch.tensor([0, 0, 1]))
    calibration.add(logits[3:] + torch.tensor([1e-9, 0.0]), torch.tensor([1]))
    assert calibration.error() == pytest.approx(100 * (0.7 + 0.5) / 4)


def test_calibration_has_15_bins_closed_above():
    """A confidence of 12/15 is in the 12th bin; a larger one is in the 13th."""
    sure = torch.tensor([[0.2, 0.8], [0.21, 0.79]]).double().log()  # 0.8 = 12/15 is the upper end of bin 12
    calibration = Calibration(CPU)
    calibration.add(sure, torch.tensor([1, 0]))
    assert calibration.bins[0].nonzero().tolist() == [[11]]
    calibration.add(torch.tensor([[0.199, 0.801]]).double().log(), torch.tensor([1]))
    assert calibration.bins[0].nonzero().tolist() == [[11], [12]]


def test_calibration_errors_of_two_bins_do_not_cancel():
    """Over-confident by 0.9 in one bin and under-confident by 0.4 in another: (0.9 + 0.4) / 2."""
    confidence = torch.tensor([0.9, 0.6]).double()
    calibration = Calibration(CPU)
    calibration.add(torch.stack([confidence.log(), (1 - confidence).log()], dim=1), torch.tensor([1, 0]))
    assert calibration.error() == pytest.approx(100 * (0.9 + 0.4) / 2)
