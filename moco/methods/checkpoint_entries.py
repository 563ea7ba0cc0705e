"""Validate the entries of a checkpoint for the queue and the target assignment."""

import math
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError, short_repr
from utils.run.checkpoint import tensor_problem
from utils.run.state import RunState

# The target of each class, now and at the end of the previous epoch.
ASSIGNMENTS = {"assignment": torch.Tensor, "assignment_before": list}


def check_assignments(state: RunState, num_classes: int) -> None:
    """Raise InputError unless the assignments in a checkpoint, if any, are permutations of the targets."""
    for name, kind in ASSIGNMENTS.items():
        if (values := state.extra.get(name)) is None:
            continue
        rows = values if isinstance(values, kind) else []
        if torch.is_tensor(rows):
            rows = [] if rows.dtype != torch.int64 or tensor_problem(rows, rows) else rows.tolist()
        if not (isinstance(rows, list) and all(type(v) is int for v in rows) and sorted(rows) == [*range(num_classes)]):
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
    stored = state.extra.get("queue_grid", state.args.get("batch_size"))  # queue_grid: an earlier result
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
