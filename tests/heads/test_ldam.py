"""LDAM-DRW against plain loops."""

import math

import numpy as np
import pytest
import torch

from moco.heads import HEADS
from moco.heads.ldam import BETA, DEFERRED, effective_weights, ldam_loss, ldam_margins

COUNTS = np.array([500, 40, 1, 0])


def test_margins_follow_inverse_fourth_root_and_are_at_most_half():
    margins = ldam_margins(COUNTS).tolist()
    assert margins == pytest.approx(
        [0.5 * n**-0.25 for n in (500, 40, 1, 1)]
    )  # a class without images counts as one image


def test_weights_are_inverse_effective_numbers():
    numbers = [sum(BETA**i for i in range(n)) for n in (500, 40, 1, 1)]  # 1 + β + β² + ..., n terms
    expected = [1 / number for number in numbers]
    assert effective_weights(COUNTS).tolist() == pytest.approx([4 * w / sum(expected) for w in expected], rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_ldam_loss_matches_loops(weighted):
    torch.manual_seed(0)
    cosines, labels = torch.rand(6, 4).double() * 2 - 1, [0, 1, 2, 3, 0, 0]
    margins, weights = [0.1, 0.2, 0.5, 0.5], [0.2, 0.8, 1.5, 1.5] if weighted else [1.0] * 4
    total = 0.0
    for row, label in zip(cosines.tolist(), labels, strict=True):
        logits = [30 * (cosine - margins[label] * (c == label)) for c, cosine in enumerate(row)]
        total -= weights[label] * (logits[label] - math.log(sum(map(math.exp, logits))))
    expected = total / sum(weights[label] for label in labels)
    given = torch.tensor(weights, dtype=torch.float64) if weighted else None
    loss = ldam_loss(30 * cosines, torch.tensor(labels), torch.tensor(margins, dtype=torch.float64), given)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_class_weights_start_after_four_fifths_of_the_epochs():
    loss = HEADS["ldam"].criterion(COUNTS, 10, "off", torch.device("cpu"))
    logits, labels, margins = torch.randn(5, 4), torch.tensor([0, 0, 1, 2, 0]), ldam_margins(COUNTS)
    plain, weighted = ldam_loss(logits, labels, margins), ldam_loss(logits, labels, margins, effective_weights(COUNTS))
    assert plain != weighted and DEFERRED == 0.8
    assert [loss(logits, labels, epoch) for epoch in (0, 7, 8, 9)] == [plain, plain, weighted, weighted]


def test_ldam_classifier_has_unit_weights_and_a_fixed_scale():
    fc = HEADS["ldam"].build(6, COUNTS)
    torch.testing.assert_close(fc.weight.norm(dim=1), torch.ones(4))
    assert fc.scale == 30 and [name for name, p in fc.named_parameters() if p.requires_grad] == ["weight"]
    assert (fc(torch.randn(5, 6)).abs() <= 30.001).all()
