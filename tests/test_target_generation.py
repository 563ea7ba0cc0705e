"""Targets are unit, spread, the exact simplex where there is one, and the same for the same seed."""

import numpy as np
import pytest
import torch

import target_generation
from moco.targets import load_targets
from target_generation import energy, energy_ratio, generate, regular_simplex
from utils.errors import InputError


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (10, 128), (129, 128)])
def test_up_to_dim_plus_1_classes_it_is_the_regular_simplex(num_classes, dim):
    points = generate(num_classes, dim).double()
    cosines = points @ points.T
    off_diagonal = cosines[~torch.eye(num_classes, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / (num_classes - 1)), atol=1e-6, rtol=0)


def test_there_is_no_simplex_of_more_points():
    with pytest.raises(ValueError, match="no regular simplex of 5 points in R\\^3"):
        regular_simplex(5, 3, torch.Generator())


def test_one_class_is_one_unit_vector():
    assert generate(1, 5).norm().item() == pytest.approx(1)


def test_more_points_are_spread_to_the_known_optimum():
    """2D points in R^D: the cross-polytope, cosines 0 and -1."""
    points = generate(8, 4)
    cosines = (points @ points.T).fill_diagonal_(0).sort(dim=1).values
    torch.testing.assert_close(cosines[:, 0], torch.full((8,), -1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(cosines[:, 1:], torch.zeros(8, 7), atol=0.02, rtol=0)


def test_better_than_random():
    torch.manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    assert energy_ratio(generate(60, 16)) < 0.8 * energy_ratio(random)


def test_energy_by_hand():
    """Three points, cosines 0, 0 and -1, temperature 1: rows see {1, 1}, {1, 1/e}, {1, 1/e} on average."""
    points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    mean = (1 + np.exp(-1)) / 2
    assert energy(points, 1.0).item() == pytest.approx(2 * np.log(mean) / 3)
    assert energy_ratio(points, 1.0) == pytest.approx((1 + 2 * mean) / 3)


def test_seed_decides_the_points():
    assert torch.equal(generate(20, 4, seed=1), generate(20, 4, seed=1))
    assert not torch.equal(generate(20, 4, seed=1), generate(20, 4, seed=2))
    assert not torch.equal(generate(5, 4, seed=1), generate(5, 4, seed=2))


def test_command_line_writes_float32_under_the_releases_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    target_generation.main(["--dataset", "digits", "--dim", "16"])
    assert np.load("optimal_10_16.npy").dtype == np.float32
    assert load_targets("optimal_10_16.npy", 10, 16).shape == (10, 16)
    assert "wrote optimal_10_16.npy: 10 targets in R^16" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["optimal_10_16.npy"]


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(InputError, match="give one of them"):
        target_generation.main(["--dataset", "digits", "--num-classes", "5"])
    with pytest.raises(InputError, match="expected the name of a file"):
        target_generation.main(["--num-classes", "5", "--output", str(tmp_path / "no" / "t.npy")])
    with pytest.raises(InputError, match="expected the name of a file"):
        target_generation.main(["--num-classes", "5", "--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
