"""The lower bound is attained by known optimal sets and violated by none. Measures are checked by hand."""

import json
from itertools import product

import numpy as np
import pytest
from scipy.special import roots_jacobi

from moco.targets.bounds import (
    BLOCK,
    degree,
    energy_bound,
    format_quality,
    pair_cosines,
    quadrature,
    target_measures,
    target_quality,
)
from moco.targets.point_sets import elliptic_quadric
from tests.refusals import line_with


def simplex(dim: int) -> np.ndarray:
    corners = np.eye(dim + 1) - 1 / (dim + 1)
    points = corners @ np.linalg.svd(corners)[2][:dim].T
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cross_polytope(dim: int) -> np.ndarray:
    return np.vstack([np.eye(dim), -np.eye(dim)])


def polygon(count: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def icosahedron() -> np.ndarray:
    golden = (1 + 5**0.5) / 2
    points = [np.roll((0, a, b * golden), turn) for a, b, turn in product((-1, 1), (-1, 1), range(3))]
    return np.array(points) / (1 + golden**2) ** 0.5


def e8_roots() -> np.ndarray:
    whole = [v for v in product((-1, 0, 1), repeat=8) if np.abs(v).sum() == 2]
    half = [v for v in product((-0.5, 0.5), repeat=8) if np.prod(v) > 0]
    return np.array(whole + half) / 2**0.5


SHARP = [simplex(4), simplex(128), cross_polytope(2), cross_polytope(3), cross_polytope(128), polygon(7), polygon(30)]
SHARP += [icosahedron(), e8_roots(), elliptic_quadric(2), elliptic_quadric(3)]


@pytest.mark.parametrize("points", SHARP, ids=lambda points: "{}x{}".format(*points.shape))
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_sharp_configurations_attain_the_bound(points, temperature):
    quality = target_quality(points, temperature)
    assert quality["energy_ratio"] == pytest.approx(quality["bound"], rel=1e-12)
    assert quality["max_cosine"] == pytest.approx(quality["max_cosine_bound"], abs=1e-12)
    assert quality["optimal"] and quality["gap_percent"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 5, 16, 128])
@pytest.mark.parametrize("count", [2, 3, 4, 6, 12, 20, 50, 300])
def test_random_sets_respect_the_bounds(count, dim):
    points = np.random.default_rng(0).standard_normal((count, dim))
    quality = target_quality(points / np.linalg.norm(points, axis=1, keepdims=True), 0.07)
    if quality["bound"] is None:
        assert (count, dim) == (300, 2)
    else:
        assert quality["energy_ratio"] >= quality["bound"] * (1 - 1e-12)
        assert quality["max_cosine"] >= quality["max_cosine_bound"] - 1e-12
    assert quality["mean_cosine"] >= quality["simplex_cosine"] - 1e-12
    assert quality["rms_cosine"] >= quality["welch_bound"] - 1e-12


def test_bound_of_1000_targets_in_128_dimensions():
    """1000 points in R^128 have the nodes 0.037 and −0.182 and the bound 1.410."""
    nodes, weights = quadrature(1000, 128)
    assert nodes == pytest.approx([-0.182, 0.037], abs=5e-4)
    assert weights.sum() == pytest.approx(1 - 1 / 1000)
    assert energy_bound(1000, 128, 0.07) == pytest.approx(1.410, abs=5e-4)


@pytest.mark.parametrize(
    ("count", "dim", "expected_degree"), [(200, 128, 2), (1000, 128, 3), (8142, 128, 3), (100, 5, 7), (50, 3, 12)]
)
def test_quadrature_is_exact_up_to_its_degree(count, dim, expected_degree):
    assert degree(count, dim) == expected_degree
    nodes, weights = quadrature(count, dim)
    assert (weights > 0).all() and nodes[0] >= -1 and nodes[-1] < 1
    x, w = roots_jacobi(40, (dim - 3) / 2, (dim - 3) / 2)
    for power in range(expected_degree + 1):
        mean = (w * x**power).sum() / w.sum()
        assert 1 / count + (weights * nodes**power).sum() == pytest.approx(mean, abs=1e-13)


@pytest.mark.parametrize(
    ("count", "expected_degree"), [(2, 1), (9, 1), (10, 2), (16, 2), (17, 3), (44, 3), (45, 4), (72, 4), (73, 5)]
)
def test_degree_follows_design_sizes(count, expected_degree):
    """In R^8, designs of strength 2, 3, 4 and 5 have at least 9, 16, 44 and 72 points."""
    assert degree(count, 8) == expected_degree


def test_target_measures_by_hand():
    """The cosines of (0, 1), (1, 0) and (−1, 0) are 0, 0 and −1."""
    points = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    measures = target_measures(points, 1.0)
    assert measures["energy_ratio"] == pytest.approx((2 + np.exp(-1)) / 3)
    assert measures["max_cosine"] == 0
    assert measures["mean_cosine"] == pytest.approx(-1 / 3)
    assert measures["rms_cosine"] == pytest.approx((1 / 3) ** 0.5)
    assert target_quality(points, 1.0)["smallest_angle"] == pytest.approx(90)


def test_pair_cosines_in_blocks_cover_all_pairs(monkeypatch):
    points = np.random.default_rng(0).standard_normal((11, 3))
    monkeypatch.setattr("moco.targets.bounds.BLOCK", 33)  # 3 rows at a time
    blocks = list(pair_cosines(points))
    assert BLOCK > 33 and [len(piece) for piece in blocks] == [30, 30, 30, 20]
    expected = (points @ points.T)[~np.eye(11, dtype=bool)]
    np.testing.assert_allclose(np.concatenate(blocks), expected)


def test_norm_error_does_not_affect_other_measures():
    quality, clean = target_quality((1 - 5e-5) * simplex(4), 0.07), target_quality(simplex(4), 0.07)
    assert quality["norm_error"] == pytest.approx(5e-5)
    assert quality["energy_ratio"] == pytest.approx(clean["energy_ratio"], rel=1e-12)
    assert quality["optimal"]


def test_bound_is_none_out_of_range():
    quality = target_quality(polygon(200), 0.07)
    assert quality["bound"] is None and quality["gap_percent"] is None and not quality["optimal"]
    assert "None" not in format_quality(quality) and "optimal" not in format_quality(quality)
    json.dumps(quality, allow_nan=False)


def test_text_reports_distance_from_optimum():
    assert "optimal" in format_quality(target_quality(simplex(4), 0.07))
    square_and_one = target_quality(polygon(8)[[0, 2, 4, 6, 1]], 0.5)
    line = line_with(format_quality(square_and_one), "degree 3")
    assert "optimal" not in line and float(line.split(" %")[0].split()[-1]) == pytest.approx(
        square_and_one["gap_percent"], rel=0.01
    )
