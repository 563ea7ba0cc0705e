"""Closed-form point sets: cosines, sizes, and the choice for given dimensions."""

import numpy as np
import pytest
import torch

from moco.targets.point_sets import elliptic_quadric, fitting_quadric, quadric_size, quadric_start, regular_simplex


def test_simplex_with_too_many_points_is_refused():
    with pytest.raises(ValueError, match=r"5.*3"):
        regular_simplex(5, 3, torch.Generator())


@pytest.mark.parametrize(("q", "size"), [(2, (27, 6)), (3, (112, 21)), (5, (756, 105))])
def test_quadric_has_two_cosines(q, size):
    points = elliptic_quadric(q)
    assert points.shape == quadric_size(q) == size
    cosines = points @ points.T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-12)
    negative = np.isclose(cosines, -1 / q, atol=1e-12)
    assert (negative | np.isclose(cosines, 1 / q**2, atol=1e-12)).sum() == size[0] * (size[0] - 1)
    assert (negative.sum(axis=1) == q * (q**2 + 1)).all()  # each point is on q² + 1 lines with q other points each
    np.testing.assert_allclose(points.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "dim", "q"),
    [(1000, 128, 5), (756, 105, 5), (755, 105, 3), (1000, 104, 3), (111, 128, None), (5000, 20, None), (8142, 512, 7)],
)
def test_fitting_quadric_is_the_largest(count, dim, q):
    assert fitting_quadric(count, dim) == q


def test_quadric_start_contains_quadric_and_random_points():
    start = quadric_start(130, 24, 3, torch.Generator().manual_seed(0)).double().numpy()
    quadric = np.pad(elliptic_quadric(3), ((0, 0), (0, 3)))
    assert (np.sum(start[:112] * quadric, axis=1) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, atol=1e-6)
