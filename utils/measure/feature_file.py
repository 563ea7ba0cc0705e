"""Write and read features.npz of a run folder: the query encoder's features of the validation split."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, first_line
from utils.files import check_regular, write_atomically
from utils.safe_load import archive_problem

NAME = "features.npz"
# Entry -> axes (n validation images, D dimensions, C classes) and dtype.
ENTRIES = {
    "features": ("nD", np.float32),
    "labels": ("n", np.int64),
    "class_counts": ("C", np.int64),
    "epoch": ("", np.int64),
    "targets": ("CD", np.float32),
    "centroid_cosines": ("C", np.float32),
}
TARGET_ENTRIES = {"targets", "centroid_cosines"}


class RunFeatures(NamedTuple):
    """A run's features of the validation split, with the shapes and dtypes of ENTRIES.

    Attributes:
        features: unit features of the images.
        labels: classes of the images.
        class_counts: training images of each class.
        epoch: completed epochs.
        targets: row y is the target of class y; None in KCL.
        centroid_cosines: cosine of each class's running centroid to its target; None in KCL.
    """

    features: Tensor
    labels: Tensor
    class_counts: Tensor
    epoch: int
    targets: Tensor | None = None
    centroid_cosines: Tensor | None = None


def write_features(run_dir: Path, features: RunFeatures) -> None:
    """Write features.npz atomically, replacing that of an earlier epoch. The tensors must be on the CPU."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in features._asdict().items() if value is not None})
    write_atomically(run_dir / NAME, lambda file: file.write(buffer.getbuffer()))


def read_features(run_dir: Path) -> RunFeatures:
    """Load features.npz without running any code in it.

    Raises:
        InputError: the file does not exist, is not an .npz of arrays, or its entries do not match ENTRIES.
    """
    path = run_dir / NAME
    check_regular(path)
    try:
        if problem := archive_problem(path):
            raise InputError(f"{path}: {problem}; it is damaged")
        with warnings.catch_warnings(), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            warnings.simplefilter("ignore")  # warnings about old headers
            arrays = {name: archive[name] for name in ENTRIES if name in archive}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # NumPy can raise any exception for a foreign file
        raise InputError(f"{path}: not a readable .npz of arrays ({first_line(error)[:160]})") from None
    if problem := _arrays_problem(arrays):
        raise InputError(f"{path}: {problem}; it is damaged")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return RunFeatures(**tensors | {"epoch": int(arrays["epoch"])})


def _arrays_problem(arrays: dict[str, np.ndarray]) -> str | None:
    """Return why these arrays are not valid `RunFeatures`, or None if they are valid."""
    lacking = ENTRIES.keys() - arrays.keys()
    if lacking and lacking != TARGET_ENTRIES:
        return f"has no {', '.join(sorted(lacking))}"
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        axes, dtype = ENTRIES[name]
        expected = tuple(lengths.setdefault(*pair) for pair in zip(axes, array.shape, strict=False))
        if array.ndim != len(axes) or array.shape != expected or 0 in expected:
            return f"{name} has shape {array.shape}, expected ({', '.join(axes)}) with {lengths}"
        if array.dtype != dtype:
            return f"{name} is {array.dtype}, expected {dtype.__name__}"
        if not np.isfinite(array).all():
            return f"{name} has a value that is not finite"
    if not ((arrays["labels"] >= 0) & (arrays["labels"] < lengths["C"])).all():
        return f"a label is out of range, expected 0 to {lengths['C'] - 1} ({lengths['C']} classes)"
    return None
