"""Measures of a feature space, by hand on the circle."""

import math

import pytest
import torch

from utils.measure.features import (
    alignment,
    class_centres,
    knn_scores,
    neighbourhood_uniformity,
    neighbours_of_a_class,
    uniformity,
)

SQRT2 = math.sqrt(2)


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_class_centres_are_unit_and_an_empty_class_has_none():
    centres = class_centres(on_circle(0, 90, 180), torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(centres[[0, 2]], on_circle(45, 180))
    assert centres[1].isnan().all()


def test_alignment_takes_all_ordered_pairs_and_classes_alike():
    """Class 0: two images √2 apart, so (0 + √2 + √2 + 0) / 4. Class 1: one image, 0. Class 2: none."""
    assert alignment(on_circle(0, 90, 200), torch.tensor([0, 0, 1])) == pytest.approx(SQRT2 / 2 / 2)


def test_uniformity_is_the_mean_over_pairs():
    """Centres at 0, 90 and 180 degrees: distances √2, √2 and 2."""
    assert uniformity(on_circle(0, 90, 180)) == pytest.approx((2 * SQRT2 + 2) / 3)


def test_uniformity_is_largest_for_the_simplex():
    assert uniformity(on_circle(0, 120, 240)) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(("k", "expected"), [(1, SQRT2), (2, (2 * SQRT2 + 2) / 3), (10, (2 * SQRT2 + 2) / 3)])
def test_neighbourhood_uniformity_takes_the_nearest(k, expected):
    assert neighbourhood_uniformity(on_circle(0, 90, 180), k) == pytest.approx(expected)


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (3, 1), (10, 3), (30, 9), (31, 10), (1000, 10), (8142, 10)])
def test_the_neighbourhood_is_ten_classes_or_a_third_of_few(classes, k):
    assert neighbours_of_a_class(classes) == k


def test_a_class_without_an_image_has_no_distance():
    centres = on_circle(0, 180, 90)
    centres[2] = float("nan")
    assert uniformity(centres) == pytest.approx(2)
    assert uniformity(centres[:1]) is None


def test_knn_weighs_votes_by_similarity():
    """One near neighbour of class 1 outvotes two far ones of class 0; exp(cosine / 0.07) each."""
    bank, labels = on_circle(60, -60, 0), torch.tensor([0, 0, 1])
    scores = knn_scores(on_circle(0), bank, labels, 3)
    torch.testing.assert_close(scores, torch.tensor([[2 * math.exp(0.5 / 0.07), math.exp(1 / 0.07), 0.0]]).double())


def test_knn_asks_the_k_nearest_alone():
    bank, labels = on_circle(10, 20, 30), torch.tensor([0, 1, 1])
    assert knn_scores(on_circle(0), bank, labels, 2, k=1)[0, 1] == 0
    assert (knn_scores(on_circle(0), bank, labels, 2, k=2) > 0).all()


def test_all_that_are_as_near_as_the_kth_vote():
    """The order of the bank decides nothing where features have fallen onto one point."""
    bank, labels = on_circle(30).repeat(50, 1).float(), torch.tensor([0] * 10 + [1] * 40)
    for order in (torch.arange(50), torch.arange(50).flip(0)):
        scores = knn_scores(bank[:3], bank[order], labels[order], 2, k=5)
        torch.testing.assert_close(scores, torch.tensor([[10.0, 40.0]] * 3) * math.exp(1 / 0.07))


@pytest.mark.parametrize("which", [0, 1])
def test_knn_of_features_that_are_not_finite_is_refused(which):
    features = [on_circle(0, 10), on_circle(20, 30)]
    features[which][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        knn_scores(*features, torch.tensor([0, 1]), 2)


def test_knn_in_blocks_is_knn_at_once():
    queries, bank = torch.nn.functional.normalize(torch.randn(2, 600, 5).double(), dim=2)
    labels = torch.arange(600) % 4
    whole = torch.cat([knn_scores(q[None], bank, labels, 4, k=7) for q in queries])
    torch.testing.assert_close(knn_scores(queries, bank, labels, 4, k=7), whole)
