"""Validate the entries of a checkpoint for the queue and the target assignment."""

import math
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError, short_repr
from utils.run.checkpoint import tensor_problem
from utils.run.state import RunState

# queue_grid: the greatest common divisor of all global batch sizes so far; queue_ptr is a multiple of it.
# assignment, assignment_before: the target of each class, now and at the end of the previous epoch.
ENTRIES = {"queue_grid": int, "assignment": torch.Tensor | None, "assignment_before": list | None}


def check_entries(state: RunState, num_classes: int) -> None:
    """Check the types of the entries, and that assignments are permutations of the targets.

    Raises:
        InputError: Names the invalid entry.
    """
    for name, kind in ENTRIES.items():
        value = state.extra.get(name)
        if name in state.extra and (not isinstance(value, kind) or isinstance(value, bool)):
            expected = getattr(kind, "__name__", kind)
            raise InputError(f"checkpoint {state.source}: {name} is {short_repr(value)}, expected {expected}")
    for name in ("assignment", "assignment_before"):
        _check_permutation(state, name, num_classes)


def _check_permutation(state: RunState, name: str, num_classes: int) -> None:
    """Raise InputError if the entry exists and is not a permutation of the targets."""
    if (values := state.extra.get(name)) is None:
        return
    if isinstance(values, torch.Tensor):
        is_index_vector = values.ndim == 1 and not tensor_problem(values, torch.zeros(0, dtype=torch.int64))
        values = values.tolist() if is_index_vector else [values]
    if not (all(type(v) is int for v in values) and sorted(values) == list(range(num_classes))):
        raise InputError(
            f"checkpoint {state.source}: {name} is {short_repr(values)}, "
            f"expected each of {num_classes} targets exactly once"
        )


def batch_size_divisor(state: RunState, batch_size: int) -> int:
    """Return the greatest common divisor of all global batch sizes so far; queue_ptr is a multiple of it.

    The result is 1 for checkpoints that do not store the batch size, such as those of the code released by the TSC
    authors.
    """
    if state.source is None:
        return batch_size
    stored = state.extra.get("queue_grid", state.args.get("batch_size"))
    return math.gcd(batch_size, stored if type(stored) is int else 1)


def check_queue(model: nn.Module, batch_size_divisor: int, source: Path) -> None:
    """Check the pointer and the labels of a queue after loading.

    Args:
        model: has `queue_ptr` (1,), `queue_labels` (1, Q) and `class_centroid` (C, D). batch_size_divisor: see
            `batch_size_divisor`.

    Raises:
        InputError: If the pointer or a label has an invalid value.
    """
    pointer, length = int(model.queue_ptr), model.queue_labels.numel()
    if not 0 <= pointer < length or pointer % batch_size_divisor:
        raise InputError(
            f"checkpoint {source}: queue_ptr is {pointer}, expected a multiple of {batch_size_divisor} "
            f"from 0 to {length - 1}; the file is damaged, use another checkpoint"
        )
    classes = len(model.class_centroid)
    wrong = model.queue_labels[(model.queue_labels < -1) | (model.queue_labels >= classes)]
    if len(wrong):
        raise InputError(
            f"checkpoint {source}: {len(wrong)} of {length} queue_labels are invalid, the first is {int(wrong[0])}, "
            f"expected -1 (empty) to {classes - 1}; the file is damaged, use another checkpoint"
        )
