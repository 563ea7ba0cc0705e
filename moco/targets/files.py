"""Class targets in files: their name, reading and checking them."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, first_line

UNIT_NORM_TOLERANCE = 1e-4
MAGIC = b"\x93NUMPY"  # with which every .npy begins


def target_file_name(num_classes: int, dim: int) -> str:
    """The release's file name of a target set."""
    return f"optimal_{num_classes}_{dim}.npy"


def load_targets(path: str | Path, num_classes: int, dim: int) -> Tensor:
    """Read a target file, (num_classes, dim) float32; raises InputError as `read_targets` and `check_targets`."""
    if not Path(path).is_file():
        raise InputError(
            f"targets {path}: no such file; make it with: "
            f"python target_generation.py --num-classes {num_classes} --dim {dim} --output {path}"
        )
    targets = read_targets(path)
    check_targets(targets, num_classes, dim, source=f"targets {path}")
    return targets


def read_targets(path: str | Path) -> Tensor:
    """The array of a target file as a float32 tensor of its shape, unchecked but for its type.

    Raises:
        InputError: no such file, not a .npy array, one that says it is larger than the file, or not of floating point
            numbers.
    """
    try:
        with Path(path).open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin != MAGIC:
            found = "it is an archive, as an .npz is" if begin.startswith(b"PK") else f"it begins with {begin!r}"
            raise InputError(f"targets {path}: is no .npy file, {found}; numpy.save writes one")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old headers
            array = np.lib.format.open_memmap(path, mode="r")  # of the file's length: nothing is made before it is read
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"targets {path}: {error.strerror or 'not a readable .npy array'}") from None
    except Exception as error:  # NumPy's reader meets anything in a file that is none of ours
        raise InputError(f"targets {path}: not a readable .npy array of numbers ({first_line(error)[:160]})") from None
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"targets {path}: dtype {array.dtype}, expected float32: unit vectors, one a row")
    with np.errstate(over="ignore"):  # what float32 cannot hold is no part of a unit vector
        return torch.from_numpy(np.array(array, dtype=np.float32))


def check_size(num_classes: int, dim: int, source: str = "targets") -> None:
    """Raises InputError: there are not so many different unit vectors."""
    if dim == 1 and num_classes > 2:
        raise InputError(
            f"{source}: {num_classes} classes in 1 dimension, which has but the two unit vectors −1 and 1, so targets "
            "for 2 classes at most; take a larger --dim, which is --moco-dim of the run"
        )


def check_targets(targets: Tensor, num_classes: int, dim: int, source: str = "targets") -> None:
    """Check that `targets` are num_classes different, finite unit vectors of dimension dim.

    Raises:
        InputError: says which of shape, finiteness, norm and difference fails, and in which row.
    """
    if tuple(targets.shape) != (num_classes, dim):
        raise InputError(
            f"{source}: shape {tuple(targets.shape)}, expected {(num_classes, dim)} (classes, dim); "
            f"make them with: python target_generation.py --num-classes {num_classes} --dim {dim}"
        )
    check_size(num_classes, dim, source)
    finite = targets.isfinite().all(dim=1)
    if not finite.all():
        raise InputError(f"{source}: {_rows(~finite)} a value that is not finite")
    norms = targets.double().norm(dim=1)
    wrong = (norms - 1).abs() > UNIT_NORM_TOLERANCE
    if wrong.any():
        raise InputError(
            f"{source}: {_rows(wrong)} norm {float(norms[wrong][0]):.6f}, "
            f"expected 1 to {UNIT_NORM_TOLERANCE:g}: targets are unit vectors"
        )
    first: dict[bytes, int] = {}  # row -> where it was met first
    for row, values in enumerate(targets.cpu().numpy() + 0.0):  # −0 + 0 = 0: equal numbers, equal bytes
        earlier = first.setdefault(values.tobytes(), row)
        if earlier != row:
            raise InputError(f"{source}: rows {earlier} and {row} are equal: two classes would share a target")


def _rows(wrong: Tensor) -> str:
    """Which rows, and the verb that goes with them."""
    rows = wrong.nonzero()[:, 0].tolist()
    if len(rows) == 1:
        return f"row {rows[0]} has"
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"rows {', '.join(map(str, rows[:3]))}{more} have"
