"""Rank, barriers, exchange of objects, and printing from the main process only.

A single process has no process group. Every collective operation, here and in collectives.py (tensors), then returns
its input, so that the rest of the project needs no special case.

This file does not import PyTorch, which takes seconds, because commands print before they need it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from tqdm import tqdm

from utils.distributed import launchers
from utils.errors import flush, printable


def _dist() -> ModuleType | None:
    """Return torch.distributed if a process group exists, otherwise None. Without PyTorch imported, none exists."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def group_exists() -> bool:
    """Whether a process group exists."""
    return _dist() is not None


def world_size() -> int:
    return dist.get_world_size() if (dist := _dist()) else 1


def rank() -> int:
    """Return the global rank; 0 without a process group."""
    return dist.get_rank() if (dist := _dist()) else 0


def is_main() -> bool:
    """Whether this is the main process, the only one that writes files and prints."""
    return rank() == 0 if group_exists() else launchers.first_of_job()  # before the process has joined the group


def barrier() -> None:
    """Wait for all ranks."""
    if dist := _dist():
        dist.barrier()


def broadcast_object(value):
    """Return rank 0's value on every rank."""
    if not (dist := _dist()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """Return the list of the ranks' values, in rank order, on every rank."""
    values = [value] * world_size()
    if dist := _dist():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first, so that the other ranks find the file that rank 0 creates."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def log(text: str = "") -> None:
    """Print a line on the main process, above any progress bar; control characters in it are escaped.

    If the program that reads stdout has exited, nothing is printed and the run continues.
    """
    if is_main():
        with suppress(BrokenPipeError):  # `flush` handles it
            tqdm.write(printable(text), file=sys.stdout)
        flush()
