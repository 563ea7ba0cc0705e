"""Class targets: read them, keep the class centroids, assign one to the other.

Pure functions of tensors; what several processes saw is gathered by the caller.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from utils.errors import InputError

CENTROID_MOMENTUM = 0.9
UNIT_NORM_TOLERANCE = 1e-4


def target_file_name(num_classes: int, dim: int) -> str:
    """The release's file name of a target set."""
    return f"optimal_{num_classes}_{dim}.npy"


def load_targets(path: str | Path, num_classes: int, dim: int) -> Tensor:
    """Read a target file and check it; returns a (num_classes, dim) float32 tensor.

    Raises:
        InputError: no such file, not a .npy array, or not what `check_targets` asks.
    """
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
        InputError: no such file, not a .npy array, or not of floating point numbers.
    """
    try:
        with Path(path).open("rb") as file:
            array = np.asarray(np.load(file, allow_pickle=False))
    except OSError as error:
        raise InputError(f"targets {path}: {error.strerror or 'not a readable .npy array'}") from None
    except Exception as error:  # NumPy's reader meets anything in a file that is none of ours
        raise InputError(f"targets {path}: not a readable .npy array of numbers ({error})") from None
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"targets {path}: dtype {array.dtype}, expected float32: unit vectors, one a row")
    return torch.from_numpy(array.astype(np.float32))


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


def update_centroids(centroids: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Move the centroids of the classes in this batch towards the batch's means.

    ``c_y <- normalise(0.9 c_y + 0.1 normalise(mean of q with label y))``; classes
    that are not in the batch keep theirs, bit for bit.

    Args:
        centroids: (C, D) unit vectors. q: (B, D) queries of the global batch.
        labels: (B,) int64 in [0, C).

    Returns:
        (C, D) the new centroids.
    """
    # A product with the one-hot labels, not index_add_, whose order of summation on a GPU is left to chance; in
    # float64 there, which --tf32 does not round.
    member = torch.arange(len(centroids), device=labels.device)[:, None] == labels  # (C, B)
    wide = torch.float64 if q.is_cuda else centroids.dtype
    total = member.to(wide) @ q.to(wide)  # (C, D)
    mean = normalize(total, dim=1).to(centroids.dtype)  # normalising the sum is normalising the mean
    moved = normalize(CENTROID_MOMENTUM * centroids + (1 - CENTROID_MOMENTUM) * mean, dim=1)
    return torch.where(member.any(dim=1, keepdim=True), moved, centroids)


def queue_centroids(centroids: Tensor, queue: Tensor, queue_labels: Tensor) -> Tensor:
    """The normalised mean of each class's keys in the queue; a class without any keeps its centroid.

    Args:
        centroids: (C, D). queue: (D, Q) keys. queue_labels: (Q,) int64, -1 where empty.

    Returns:
        (C, D) unit vectors: centroids that know the classes before TSC's first assignment.
    """
    keys, labels = queue.T.cpu().double(), queue_labels.cpu()  # once a run, and the CPU adds in a fixed order
    full = labels >= 0
    total = torch.zeros(centroids.shape, dtype=keys.dtype).index_add_(0, labels[full], keys[full])  # (C, D)
    present = torch.bincount(labels[full], minlength=len(centroids)) > 0  # (C,)
    means = normalize(total, dim=1).to(centroids)
    return torch.where(present.to(centroids.device)[:, None], means, centroids)


def assign_targets(centroids: Tensor, targets: Tensor) -> Tensor:
    """The permutation sigma that maximises sum_y c_y · t_sigma(y), exactly.

    One full solve. Training solves at every step, with `moco.assignment.Assignment`.

    Args:
        centroids: (C, D). targets: (C, D).

    Returns:
        (C,) int64 on the centroids' device: sigma(y), the row of class y's target.

    Raises:
        FloatingPointError: a centroid is not finite: the features have diverged.
    """
    similarity = (centroids @ targets.T).cpu().double().numpy()  # (C, C)
    if not np.isfinite(similarity).all():
        raise FloatingPointError("a class centroid is not finite")
    _, column = linear_sum_assignment(similarity, maximize=True)
    return torch.from_numpy(column).to(centroids.device)
