"""Loading targets, updating centroids, and assigning targets to classes."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from moco.targets.assignment import Assignment
from moco.targets.centroids import queue_centroids, update_centroids
from moco.targets.files import check_targets, load_targets
from moco.targets.generation import generate
from tests import oracle
from tests.refusals import refusal
from tests.tiny import tiny_model, unit_vectors


def test_centroid_update_by_hand():
    centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    after = update_centroids(centroids, q, torch.tensor([0, 0, 1]))
    norm = (0.9**2 + 0.1**2) ** 0.5  # class 0: 0.9·(1, 0) + 0.1·(0, 1)
    assert after[0].tolist() == pytest.approx([0.9 / norm, 0.1 / norm])
    assert after[1].tolist() == pytest.approx(normalize(torch.tensor([0.06, 0.98]), dim=0).tolist(), rel=1e-6)


def test_centroids_of_absent_classes_are_unchanged():
    centroids = unit_vectors(50, 5)
    after = update_centroids(centroids, unit_vectors(3, 5), torch.tensor([0, 0, 1]))
    assert torch.equal(after[2:], centroids[2:])
    assert not torch.equal(after[:2], centroids[:2])


def test_centroid_update_matches_oracle():
    centroids, q, labels = unit_vectors(7, 5), unit_vectors(30, 5), torch.randint(0, 6, (30,))
    torch.testing.assert_close(
        update_centroids(centroids, q, labels), oracle.centroids(centroids, q, labels.tolist()), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("seed", range(10))
def test_assignment_matches_exhaustive_search(seed):
    torch.manual_seed(seed)
    centroids, targets = unit_vectors(6, 4), unit_vectors(6, 4)
    sigma = Assignment(targets).solve(centroids)
    assert sorted(sigma.tolist()) == list(range(6))
    assert sigma.tolist() == oracle.assignment(centroids @ targets.T)


def test_assignment_recovers_a_permutation():
    targets = unit_vectors(300, 64)
    permutation = torch.randperm(300)
    assert np.array_equal(Assignment(targets).solve(targets[permutation]), permutation)


def targets_with_scaled_row(row: int, value: float) -> np.ndarray:
    targets = np.eye(3, 4, dtype=np.float32)
    targets[row] *= value
    return targets


@pytest.mark.parametrize(
    ("array", "facts"),
    [
        (np.eye(4, dtype=np.float32), ["(4, 4)", "(3, 4)"]),
        (np.ones(3, dtype=np.float32), ["(3,)", "(3, 4)"]),
        (targets_with_scaled_row(1, np.nan), ["row 1", "finite"]),
        (targets_with_scaled_row(2, 1.01), ["row 2", "1.01"]),
        (targets_with_scaled_row(0, 0.0), ["row 0", "norm 0.0"]),
        (2 * np.eye(3, 4), ["rows 0, 1, 2", "2.0"]),
        (np.eye(3, 4)[[0, 1, 0]], ["0 and 2", "equal"]),
        (np.eye(3, 4, dtype=np.int64), ["int64", "float32"]),
        (np.eye(3, 4, dtype=np.complex64), ["complex64", "float32"]),
        (np.array(["a"]), ["<U1", "float32"]),
    ],
)
def test_invalid_target_file_is_refused(array, facts, tmp_path):
    path = tmp_path / "targets.npy"
    np.save(path, array)
    refusal(lambda: load_targets(path, 3, 4), path, *facts)


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04 and half a zip"])
def test_file_that_is_not_an_array_is_refused(content, tmp_path):
    (tmp_path / "targets.npy").write_bytes(content)
    refusal(lambda: load_targets(tmp_path / "targets.npy", 3, 4), tmp_path / "targets.npy", ".npy file")


def test_targets_equal_up_to_signed_zero_are_refused():
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0]])
    refusal(lambda: check_targets(targets, 3, 2), "0 and 2", "equal")


def test_targets_that_are_not_a_tensor_are_refused():
    refusal(lambda: tiny_model(targets=np.eye(3, 4)), "ndarray", "torch.from_numpy")


@pytest.mark.parametrize(("classes", "dim"), [(0, 3), (3, 0), (3, 1)])
def test_targets_that_cannot_exist_are_not_generated(classes, dim):
    refusal(lambda: generate(classes, dim), classes, dim)


def test_many_invalid_rows_are_counted():
    targets = torch.full((10, 2), torch.inf)
    refusal(lambda: check_targets(targets, 10, 2), "rows 0, 1, 2", "7", "finite")


def test_target_norms_have_tolerance_1e_4():
    targets = torch.eye(3, 4)
    check_targets(targets * (1 + 0.9e-4), 3, 4)
    refusal(lambda: check_targets(targets * (1 - 1.1e-4), 3, 4), "rows 0, 1, 2", "norm")


def test_float64_targets_are_loaded_as_float32(tmp_path):
    np.save(tmp_path / "t.npy", np.eye(3, 4))
    targets = load_targets(tmp_path / "t.npy", 3, 4)
    assert targets.dtype == torch.float32
    check_targets(targets, 3, 4)


def test_queue_centroids_are_class_means():
    queue = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).T  # classes 0, 0, empty, 2
    before = torch.tensor([[0.0, -1.0], [0.6, 0.8], [1.0, 0.0]])
    after = queue_centroids(before, queue, torch.tensor([0, 0, -1, 2]))
    torch.testing.assert_close(after[0], torch.tensor([0.5, 0.5]).sqrt())
    assert after[1].tolist() == before[1].tolist()
    assert after[2].tolist() == [0, -1]
