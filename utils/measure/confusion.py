"""Confusion of classes: how many images of each class are classified as each class."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils import distributed
from utils.errors import short_repr
from utils.safe_load import is_count

MAX_CLASSES = 50  # with more classes, only the most frequent errors are kept
NUM_PAIRS = 50  # number of kept errors


class Confusion:
    """Counts of (class, predicted class) over all ranks."""

    def __init__(self, num_classes: int):
        self.num_classes, self.cells = num_classes, []  # of each batch: class · C + predicted class, (N,) int64

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, C), labels (N,). As in `rank_of_label`, a tie counts as an error."""
        own = labels[:, None]  # (N, 1)
        best, rival = logits.scatter(1, own, -torch.inf).max(1)  # (N,) each: the best other class
        predicted = torch.where(logits.gather(1, own)[:, 0] > best, labels, rival)
        self.cells.append(labels * self.num_classes + predicted)

    def summary(self) -> dict:
        """Return the counts as plain data.

        - Up to MAX_CLASSES classes: {"counts": C lists of C}; row: class, column: predicted class.
        - More classes: {"pairs": [[class, predicted class, images, test images of the class], …]}, the NUM_PAIRS most
          frequent errors, the most frequent first.
        """
        local = torch.cat([*self.cells, torch.empty(0, dtype=torch.int64, device=self.device)]).cpu()
        cells = torch.cat(distributed.gather_objects(local))
        if self.num_classes <= MAX_CLASSES:
            square = torch.bincount(cells, minlength=self.num_classes**2).view(self.num_classes, -1)
            return {"counts": square.tolist()}
        found, images = cells.unique(return_counts=True)
        truth, predicted = found // self.num_classes, found % self.num_classes
        totals = torch.zeros(self.num_classes, dtype=torch.int64).index_add_(0, truth, images)
        errors = (truth != predicted).nonzero()[:, 0]
        errors = errors[images[errors].argsort(descending=True, stable=True)][:NUM_PAIRS]
        columns = truth[errors], predicted[errors], images[errors], totals[truth[errors]]
        return {"pairs": torch.stack(columns, 1).tolist()}

    @property
    def device(self) -> torch.device:
        return self.cells[0].device if self.cells else torch.device("cpu")


class Pair(NamedTuple):
    """Images of a class that are classified as another class. total: all test images of the class."""

    label: int
    predicted: int
    images: int
    total: int


def most_confused(confusion: dict, at_most: int) -> list[Pair]:
    """Return the most frequent errors in a summary of `Confusion`, the most frequent first."""
    if "pairs" in confusion:
        return [Pair(*pair) for pair in confusion["pairs"][:at_most]]
    counts = confusion["counts"]
    pairs = [Pair(c, d, n, sum(row)) for c, row in enumerate(counts) for d, n in enumerate(row) if n and c != d]
    return sorted(pairs, key=lambda pair: -pair.images)[:at_most]


def confusion_problem(confusion: object, num_classes: int) -> str | None:
    """Return why `confusion` is not a summary of `Confusion` for this number of classes, or None if it is one."""
    kind = next(iter(confusion), None) if isinstance(confusion, dict) and len(confusion) == 1 else None
    rows = confusion[kind] if kind in ("counts", "pairs") else None
    width, limits = (num_classes, ()) if kind == "counts" else (len(Pair._fields), (num_classes, num_classes))
    valid = isinstance(rows, list) and all(isinstance(row, list) and len(row) == width for row in rows)
    valid = valid and (kind == "pairs" or len(rows) == num_classes) and all(is_count(n) for row in rows for n in row)
    if valid and all(value < limit for row in rows for value, limit in zip(row, limits, strict=False)):
        return None
    return f"confusion is {short_repr(confusion)}, expected counts of {num_classes} classes, or pairs"
