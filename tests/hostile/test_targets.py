"""Target files that are none, or say that they are larger than they are: refused in a line, at no cost."""

import numpy as np
import pytest

import target_generation
from moco.targets.files import load_targets
from utils.errors import InputError

HUGE = 10**15


def header(text: str) -> bytes:
    """A .npy that says so and has 8 bytes."""
    padded = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, 16)}}"), "not a readable .npy array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (10, 16)}"), "not a readable .npy array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (10L, 16)}"), "not a readable .npy array"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1L, 1)}"), r"shape \(1, 1\), expected \(10, 16\)"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}"), "not a readable .npy array"),
        (header("(" * 90), "not a readable .npy array"),
        (b"PK\x03\x04 an archive", "is no .npy file, it is an archive, as an .npz is; numpy.save writes one"),
        (b"1.0,2.0\n", "is no .npy file, it begins with b'1.0,2.'; numpy.save writes one"),
    ],
)
def test_a_target_file_that_says_more_than_it_holds_is_named(content, message, tmp_path):
    (tmp_path / "t.npy").write_bytes(content)
    with pytest.raises(InputError, match=f"targets .*t.npy: {message}") as error:
        load_targets(tmp_path / "t.npy", 10, 16)
    assert "\n" not in str(error.value)


def test_a_number_that_float32_cannot_hold_is_named(tmp_path):
    np.save(tmp_path / "t.npy", np.full((2, 3), 1e300))
    with pytest.raises(InputError, match=r"targets .*t\.npy.*finite"):
        load_targets(tmp_path / "t.npy", 2, 3)


def test_an_npz_is_no_npy(tmp_path):
    np.savez(tmp_path / "t.npz", a=np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match=r"is no \.npy file, it is an archive"):
        load_targets(tmp_path / "t.npz", 3, 3)


def test_one_dimension_has_two_unit_vectors(tmp_path):
    words = ["--dim", "1", "--output", str(tmp_path / "t.npy"), "--device", "cpu", "--num-classes"]
    with pytest.raises(InputError, match="3 classes in 1 dimension, which has but the two unit vectors −1 and 1"):
        target_generation.main([*words, "3"])
    assert not list(tmp_path.iterdir())
    target_generation.main([*words, "2"])
    assert sorted(np.load(tmp_path / "t.npy")[:, 0].tolist()) == [-1, 1]
