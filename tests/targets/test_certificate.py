"""The lower bound is met where a best set is known and passed nowhere; measures by hand."""

import json
from itertools import product

import numpy as np
import pytest
from scipy.special import roots_jacobi

from moco.targets.certificate import (
    BLOCK,
    as_text,
    certificate,
    degree,
    energy_bound,
    measures,
    pair_cosines,
    quadrature,
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


def roots_of_e8() -> np.ndarray:
    whole = [v for v in product((-1, 0, 1), repeat=8) if np.abs(v).sum() == 2]
    half = [v for v in product((-0.5, 0.5), repeat=8) if np.prod(v) > 0]
    return np.array(whole + half) / 2**0.5


SHARP = [simplex(4), simplex(128), cross_polytope(2), cross_polytope(3), cross_polytope(128), polygon(7), polygon(30)]
SHARP += [icosahedron(), roots_of_e8(), elliptic_quadric(2), elliptic_quadric(3)]


@pytest.mark.parametrize("points", SHARP, ids=lambda points: "{}x{}".format(*points.shape))
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_bound_is_met_by_sharp_configurations(points, temperature):
    facts = certificate(points, temperature)
    assert facts["energy_ratio"] == pytest.approx(facts["bound"], rel=1e-12)
    assert facts["max_cosine"] == pytest.approx(facts["max_cosine_bound"], abs=1e-12)
    assert facts["optimal"] and facts["gap_percent"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 5, 16, 128])
@pytest.mark.parametrize("count", [2, 3, 4, 6, 12, 20, 50, 300])
def test_no_set_is_below_the_bound(count, dim):
    points = np.random.default_rng(0).standard_normal((count, dim))
    facts = certificate(points / np.linalg.norm(points, axis=1, keepdims=True), 0.07)
    if facts["bound"] is None:
        assert (count, dim) == (300, 2)
    else:
        assert facts["energy_ratio"] >= facts["bound"] * (1 - 1e-12)
        assert facts["max_cosine"] >= facts["max_cosine_bound"] - 1e-12
    assert facts["mean_cosine"] >= facts["simplex_cosine"] - 1e-12
    assert facts["rms_cosine"] >= facts["welch_bound"] - 1e-12


def test_the_bound_of_the_releases_size():
    """1000 points in R^128: the nodes 0.037 and −0.182, and 1.410."""
    nodes, weights = quadrature(1000, 128)
    assert nodes == pytest.approx([-0.182, 0.037], abs=5e-4)
    assert weights.sum() == pytest.approx(1 - 1 / 1000)
    assert energy_bound(1000, 128, 0.07) == pytest.approx(1.410, abs=5e-4)


@pytest.mark.parametrize(
    ("count", "dim", "m"), [(200, 128, 2), (1000, 128, 3), (8142, 128, 3), (100, 5, 7), (50, 3, 12)]
)
def test_the_quadrature_is_exact_to_its_degree(count, dim, m):
    assert degree(count, dim) == m
    nodes, weights = quadrature(count, dim)
    assert (weights > 0).all() and nodes[0] >= -1 and nodes[-1] < 1
    x, w = roots_jacobi(40, (dim - 3) / 2, (dim - 3) / 2)
    for power in range(m + 1):
        mean = (w * x**power).sum() / w.sum()
        assert 1 / count + (weights * nodes**power).sum() == pytest.approx(mean, abs=1e-13)


@pytest.mark.parametrize(
    ("count", "m"), [(2, 1), (9, 1), (10, 2), (16, 2), (17, 3), (44, 3), (45, 4), (72, 4), (73, 5)]
)
def test_the_degree_changes_where_designs_do(count, m):
    """In R^8 designs of strength 2, 3, 4, 5 have at least 9, 16, 44, 72 points."""
    assert degree(count, 8) == m


def test_measures_by_hand():
    """Cosines of (0,1), (1,0), (−1,0): 0, 0, −1."""
    points = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    found = measures(points, 1.0)
    assert found["energy_ratio"] == pytest.approx((2 + np.exp(-1)) / 3)
    assert found["max_cosine"] == 0
    assert found["mean_cosine"] == pytest.approx(-1 / 3)
    assert found["rms_cosine"] == pytest.approx((1 / 3) ** 0.5)
    assert certificate(points, 1.0)["smallest_angle"] == pytest.approx(90)


def test_pairs_in_blocks_are_all_pairs(monkeypatch):
    points = np.random.default_rng(0).standard_normal((11, 3))
    monkeypatch.setattr("moco.targets.certificate.BLOCK", 33)  # 3 rows at a time
    pieces = list(pair_cosines(points))
    assert BLOCK > 33 and [len(piece) for piece in pieces] == [30, 30, 30, 20]
    expected = (points @ points.T)[~np.eye(11, dtype=bool)]
    np.testing.assert_allclose(np.concatenate(pieces), expected)


def test_norm_errors_are_reported_and_left_out_of_the_rest():
    facts, clean = certificate((1 - 5e-5) * simplex(4), 0.07), certificate(simplex(4), 0.07)
    assert facts["norm_error"] == pytest.approx(5e-5)
    assert facts["energy_ratio"] == pytest.approx(clean["energy_ratio"], rel=1e-12)
    assert facts["optimal"]


def test_out_of_range_there_is_no_bound():
    facts = certificate(polygon(200), 0.07)
    assert facts["bound"] is None and facts["gap_percent"] is None and not facts["optimal"]
    assert "None" not in as_text(facts) and "optimal" not in as_text(facts)
    json.dumps(facts, allow_nan=False)


def test_the_text_says_how_far_from_optimal():
    assert "optimal" in as_text(certificate(simplex(4), 0.07))
    square_and_one = certificate(polygon(8)[[0, 2, 4, 6, 1]], 0.5)
    line = line_with(as_text(square_and_one), "degree 3")
    assert "optimal" not in line and float(line.split(" %")[0].split()[-1]) == pytest.approx(
        square_and_one["gap_percent"], rel=0.01
    )
