"""Devices: what --device names, whether it is there, how many share it; and what a machine's memory holds."""

import os

import torch

from utils.errors import InputError, first_line


def device_named(name: str) -> torch.device:
    """What --device says; auto: a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_device(device: str, world: int) -> None:
    """Refuse a --device that this machine does not have, or that `world` processes cannot share.

    Nothing is put on a GPU: each process that did so, before it knows its own, would hold memory of the first.

    Raises:
        InputError: says which.
    """
    if device == "auto":
        return
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise RuntimeError("computes nothing")
        if parsed.type == "cuda":
            _check_cuda(parsed.index)
        else:
            torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {device}: {first_line(error).split('. ')[0]}") from None
    if parsed.index is not None and world > 1:
        raise InputError(f"device {device}: {world} processes cannot share it; leave --device and --gpu out")


def _check_cuda(index: int | None) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU that it can use here")
    if index is not None and index >= torch.cuda.device_count():
        raise RuntimeError(f"there are {torch.cuda.device_count()}, counted from 0")


def check_memory(flag: str, what: str, size: int, advice: str) -> None:
    """Refuse what this machine cannot hold, before it is tried: the system would kill the process without a word.

    size: bytes. Raises InputError.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise InputError(
            f"{flag}: {what} takes {size / 2**30:,.0f} GiB, this machine has {there / 2**30:,.0f}; {advice}"
        )


def pick_device(name: str) -> torch.device:
    """The device of --device, for a program of one process.

    Raises:
        InputError: it is not there.
    """
    check_device(name, 1)
    return device_named(name)


def check_gpus(device: torch.device, processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs, where each would take the one of its number.

    Raises:
        InputError: there are more.
    """
    gpus = torch.cuda.device_count()
    each_its_own = gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # if not, they say so when they have met
    if device == torch.device("cuda") and 0 < gpus < processes and not each_its_own:
        raise InputError(f"{processes} processes on a machine with {gpus} GPUs: start {gpus}, or --device cpu")


def usable_cores() -> int:
    """Cores this process may run on, which on a cluster can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
