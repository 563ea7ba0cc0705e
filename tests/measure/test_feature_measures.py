"""Measures of a feature space, computed by hand for points on the unit circle."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from imagenet_inat.datasets import REGISTRY
from utils.measure.feature_measures import (
    alignment,
    class_centres,
    default_knn_k,
    default_uniformity_k,
    knn_scores,
    neighbourhood_uniformity,
    neural_collapse,
    reasonability,
    uniformity,
)

SQRT2 = math.sqrt(2)


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_class_centres_are_unit_vectors_or_nan():
    centres = class_centres(on_circle(0, 90, 180), torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(centres[[0, 2]], on_circle(45, 180))
    assert centres[1].isnan().all()


def test_alignment_averages_pairs_then_classes():
    """Class 0 has two images √2 apart: (0 + √2 + √2 + 0) / 4. Class 1 has one image: 0. Class 2 has no image."""
    assert alignment(on_circle(0, 90, 200), torch.tensor([0, 0, 1])) == pytest.approx(SQRT2 / 2 / 2)


def test_uniformity_is_mean_distance_of_pairs():
    """The centres at 0, 90 and 180 degrees have distances √2, √2 and 2."""
    assert uniformity(on_circle(0, 90, 180)) == pytest.approx((2 * SQRT2 + 2) / 3)


def test_uniformity_of_simplex():
    assert uniformity(on_circle(0, 120, 240)) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(("k", "expected"), [(1, SQRT2), (2, (2 * SQRT2 + 2) / 3), (10, (2 * SQRT2 + 2) / 3)])
def test_neighbourhood_uniformity_uses_nearest_centres(k, expected):
    assert neighbourhood_uniformity(on_circle(0, 90, 180), k) == pytest.approx(expected)


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (3, 1), (10, 3), (30, 9), (31, 10), (1000, 10), (8142, 10)])
def test_default_number_of_neighbour_classes(classes, k):
    assert default_uniformity_k(classes) == k


def test_empty_class_is_excluded_from_uniformity():
    centres = on_circle(0, 180, 90)
    centres[2] = float("nan")
    assert uniformity(centres) == pytest.approx(2)
    assert uniformity(centres[:1]) is None


def test_knn_weights_votes_by_similarity():
    """One near neighbour of class 1 outvotes two far ones of class 0. The weight is exp(cosine / 0.07)."""
    bank, labels = on_circle(60, -60, 0), torch.tensor([0, 0, 1])
    scores = knn_scores(on_circle(0), bank, labels, 3, k=200)
    torch.testing.assert_close(scores, torch.tensor([[2 * math.exp(0.5 / 0.07), math.exp(1 / 0.07), 0.0]]).double())


@pytest.mark.parametrize(("images", "k"), [(1, 1), (294, 17), (2478, 50), (40_000, 200), (115_846, 200)])
def test_default_k_is_root_of_number_of_images(images, k):
    assert default_knn_k(images) == k


def test_balanced_knn_divides_votes_by_class_size():
    bank, labels = on_circle(60, -60, 0), torch.tensor([0, 0, 1])
    scores = knn_scores(on_circle(0), bank, labels, 3, k=3, balanced=True)
    torch.testing.assert_close(scores, torch.tensor([[math.exp(0.5 / 0.07), math.exp(1 / 0.07), 0.0]]).double())


def test_collapse_matches_hand_computation():
    """Classes at -1 ± 0.5 and 1 ± 0.5: within-class variance 0.25, variance of the means 1, NC1 = 0.25 / 1 / 2."""
    features = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]])
    nc1, nc2 = neural_collapse(features, torch.tensor([0, 0, 2, 2]), 3)  # class 1 has no image
    assert nc1 == pytest.approx(0.125) and nc2 == pytest.approx(0)


def test_collapse_matches_numpy_and_ignores_shift():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 5)), np.arange(60) % 4
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    centred, within = means - means.mean(0), features - means[labels]
    expected = np.trace(within.T @ within / 60 @ np.linalg.pinv(centred.T @ centred / 4)) / 4
    angles = [abs(a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1 / 3) for a, b in itertools.combinations(centred, 2)]
    for shifted in (features, features + 7):
        found = neural_collapse(torch.tensor(shifted), torch.tensor(labels), 4)
        assert found == (pytest.approx(expected), pytest.approx(np.mean(angles)))


def test_collapse_of_simplex_is_zero():
    features, labels = on_circle(0, 120, 240).repeat(2, 1), torch.tensor([0, 1, 2] * 2)
    assert neural_collapse(features, labels, 3) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_collapse_is_none_for_one_class_or_one_point():
    assert neural_collapse(on_circle(0, 10), torch.tensor([0, 0]), 2) == (None, None)
    assert neural_collapse(on_circle(5, 5).float(), torch.tensor([0, 1]), 2) == (None, None)


def test_reasonability_is_mean_distance_within_groups():
    """Targets at 0, 90 and 180 degrees. The first two form a group; the third is alone in its group."""
    targets = on_circle(0, 90, 180, 180)
    assert reasonability(targets, torch.tensor([0, 0, 1, 2])) == pytest.approx(SQRT2)
    assert reasonability(targets, torch.tensor([0, 0, 0, 1])) == pytest.approx((2 * SQRT2 + 2) / 3)


def test_cifar100_has_20_superclasses_of_5_classes():
    groups = REGISTRY["cifar100"].superclasses
    assert len(groups) == 100 and set(Counter(groups).values()) == {5} and set(groups) == set(range(20))
    assert {c for c, group in enumerate(groups) if group == 18} == {8, 13, 48, 58, 90}  # vehicles 1: bicycle, bus, ...


def test_knn_uses_only_k_nearest():
    bank, labels = on_circle(10, 20, 30), torch.tensor([0, 1, 1])
    assert knn_scores(on_circle(0), bank, labels, 2, k=1)[0, 1] == 0
    assert (knn_scores(on_circle(0), bank, labels, 2, k=2) > 0).all()


def test_knn_counts_all_ties_of_kth_neighbour():
    """If all features coincide, the order of the bank does not matter."""
    bank, labels = on_circle(30).repeat(50, 1).float(), torch.tensor([0] * 10 + [1] * 40)
    for order in (torch.arange(50), torch.arange(50).flip(0)):
        scores = knn_scores(bank[:3], bank[order], labels[order], 2, k=5)
        torch.testing.assert_close(scores, torch.tensor([[10.0, 40.0]] * 3) * math.exp(1 / 0.07))


@pytest.mark.parametrize("which", [0, 1])
def test_knn_refuses_non_finite_features(which):
    features = [on_circle(0, 10), on_circle(20, 30)]
    features[which][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="finite"):
        knn_scores(*features, torch.tensor([0, 1]), 2, k=2)


def test_knn_of_batch_matches_single_queries():
    queries, bank = torch.nn.functional.normalize(torch.randn(2, 600, 5).double(), dim=2)
    labels = torch.arange(600) % 4
    whole = torch.cat([knn_scores(q[None], bank, labels, 4, k=7) for q in queries])
    torch.testing.assert_close(knn_scores(queries, bank, labels, 4, k=7), whole)
