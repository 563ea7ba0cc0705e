"""Target files: names, reading and validation."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, first_line
from utils.files import check_regular, file_problem

UNIT_NORM_TOLERANCE = 1e-4
MAGIC = b"\x93NUMPY"  # first bytes of every .npy file


def target_file_name(num_classes: int, dim: int) -> str:
    """Return the name of a target file, as in the code released by the TSC authors."""
    return f"optimal_{num_classes}_{dim}.npy"


def add_copies(targets: Tensor, copies: int) -> Tensor:
    """Return (C·r, D), r copies of each target (C, D): rows y·r … y·r + r − 1 are copies of target y."""
    return targets.repeat_interleave(copies, dim=0)


def remove_copies(targets: Tensor, copies: int) -> Tensor:
    """Return the targets, (C, D), of the result of `add_copies`."""
    return targets[::copies]


def load_targets(path: str | Path, num_classes: int, dim: int) -> Tensor:
    """Read and check a target file, (num_classes, dim) float32. Raises as `read_targets`, `check_targets`."""
    if problem := file_problem(path):
        raise InputError(
            f"targets {path}: {problem}; create the targets with: "
            f"python target_generation.py --num-classes {num_classes} --dim {dim} --output {path}"
        )
    targets = read_targets(path)
    check_targets(targets, num_classes, dim, source=f"targets {path}")
    return targets


def read_targets(path: str | Path) -> Tensor:
    """Read the array of a target file as a float32 tensor. Checks the type, but neither shape nor values.

    Raises:
        InputError: If the file does not exist, is not a .npy file, is shorter than its header claims, or does not
            contain floating-point numbers.
    """
    check_regular(Path(path))
    try:
        with Path(path).open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin != MAGIC:
            found = "it is an archive (.npz?)" if begin.startswith(b"PK") else f"it begins with {begin!r}"
            raise InputError(f"targets {path}: not a .npy file, {found}; write the file with numpy.save")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old headers cause warnings
            array = np.lib.format.open_memmap(path, mode="r")  # checks the file size and allocates no memory
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"targets {path}: {error.strerror or 'not a readable .npy array'}") from None
    except Exception as error:  # NumPy can raise any exception for an arbitrary file
        raise InputError(f"targets {path}: not a readable .npy array of numbers ({first_line(error)[:160]})") from None
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"targets {path}: dtype {array.dtype}, expected float32 (one unit vector per row)")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, which check_targets rejects
        return torch.from_numpy(np.array(array, dtype=np.float32))


def check_size(num_classes: int, dim: int, source: str = "targets") -> None:
    """Raise InputError if there are fewer than num_classes different unit vectors in this dimension."""
    if num_classes < 1 or dim < 1:
        raise InputError(f"{source}: {num_classes} classes in {dim} dimensions, expected at least 1 of both")
    if dim == 1 and num_classes > 2:
        raise InputError(
            f"{source}: {num_classes} classes in 1 dimension, expected at most 2 (the unit vectors −1 and 1); "
            "use a larger --dim, and the same --moco-dim in the run"
        )


def check_targets(targets: Tensor, num_classes: int, dim: int, source: str = "targets") -> None:
    """Check that `targets` are num_classes different, finite unit vectors of dimension dim.

    Raises:
        InputError: Names the failed check (type, shape, finite values, norm, or distinct rows) and the row.
    """
    if not isinstance(targets, Tensor):
        raise InputError(f"{source}: found a {type(targets).__name__}, expected a tensor; use torch.from_numpy")
    if tuple(targets.shape) != (num_classes, dim):
        raise InputError(
            f"{source}: shape {tuple(targets.shape)}, expected {(num_classes, dim)} (classes, dim); "
            f"create them with: python target_generation.py --num-classes {num_classes} --dim {dim}"
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
            f"expected unit vectors (norm 1 to within {UNIT_NORM_TOLERANCE:g})"
        )
    first: dict[bytes, int] = {}  # row bytes -> index of the first row with them
    for row, values in enumerate(targets.cpu().numpy() + 0.0):  # −0 + 0 = 0: equal numbers, equal bytes
        earlier = first.setdefault(values.tobytes(), row)
        if earlier != row:
            raise InputError(
                f"{source}: rows {earlier} and {row} are equal, expected a different target for each class"
            )


def _rows(wrong: Tensor) -> str:
    """Return a list of the row numbers, followed by "has" or "have"."""
    rows = wrong.nonzero()[:, 0].tolist()
    if len(rows) == 1:
        return f"row {rows[0]} has"
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"rows {', '.join(map(str, rows[:3]))}{more} have"
