"""features.npz of a run folder: what the query encoder makes of the validation split, for who reads the run later."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, first_line
from utils.files import write_whole
from utils.untrusted import swollen

NAME = "features.npz"
# Entry -> its axes (n validation images, D dimensions, C classes) and its numbers.
ENTRIES = {
    "features": ("nD", np.float32),
    "labels": ("n", np.int64),
    "class_counts": ("C", np.int64),
    "epoch": ("", np.int64),
    "targets": ("CD", np.float32),
    "centroid_cosines": ("C", np.float32),
}
OF_TARGETS = {"targets", "centroid_cosines"}


class RunFeatures(NamedTuple):
    """The validation split in a run's features.

    Of unit features, in the shapes and types of ENTRIES. class_counts: training images. epoch: whole epochs done.
    targets: row y is that of class y, and centroid_cosines those of the running centroids to them; both None in KCL.
    """

    features: Tensor
    labels: Tensor
    class_counts: Tensor
    epoch: int
    targets: Tensor | None = None
    centroid_cosines: Tensor | None = None


def write_features(run_dir: Path, found: RunFeatures) -> None:
    """Write the file whole, over the one of an earlier epoch; tensors on the CPU."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in found._asdict().items() if value is not None})
    write_whole(run_dir / NAME, lambda file: file.write(buffer.getbuffer()))


def read_features(run_dir: Path) -> RunFeatures:
    """Numbers only, never code. Raises InputError: no such file, no .npz of arrays, or other entries than ENTRIES."""
    path = run_dir / NAME
    try:
        if wrong := swollen(path):
            raise InputError(f"{path}: {wrong}; it is damaged")
        with warnings.catch_warnings(), path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            warnings.simplefilter("ignore")  # of old headers
            arrays = {name: found[name] for name in ENTRIES if name in found}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # NumPy's reader meets anything in a file that is none of ours
        raise InputError(f"{path}: not a readable .npz of arrays ({first_line(error)[:160]})") from None
    if wrong := _what_is_wrong(arrays):
        raise InputError(f"{path}: {wrong}; it is damaged")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return RunFeatures(**tensors | {"epoch": int(arrays["epoch"])})


def _what_is_wrong(arrays: dict[str, np.ndarray]) -> str | None:
    """Why these are no `RunFeatures`; None if they are."""
    lacking = ENTRIES.keys() - arrays.keys()
    if lacking and lacking != OF_TARGETS:
        return f"lacks {', '.join(sorted(lacking))}"
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
        return f"a label is none of {lengths['C']} classes"
    return None
