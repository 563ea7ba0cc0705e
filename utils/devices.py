"""Choose, check and name devices (--device, --gpu), count usable CPU cores, and check memory sizes."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from utils.errors import InputError, first_line

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers


def resolve_device(name: str) -> torch.device:
    """Return the device of --device; auto is a GPU if one is available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_device(device: str, world: int) -> None:
    """Raise InputError if this machine lacks the device, or if `world` processes cannot share it.

    Nothing is allocated on a GPU: a process that does not know its own GPU yet would occupy memory of the first one.
    """
    if device == "auto":
        return
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise RuntimeError("cannot compute")
        if parsed.type == "cuda":
            _check_cuda(parsed.index)
        else:
            torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {device}: {first_line(error).split('. ')[0]}") from None
    if parsed.index is not None and world > 1:
        raise InputError(f"device {device}: {world} processes cannot share it; omit --device and --gpu")


def _check_cuda(index: int | None) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no usable GPU")
    if index is not None and index >= torch.cuda.device_count():
        raise RuntimeError(f"this machine has {torch.cuda.device_count()} GPUs, counted from 0")


def check_memory(flag: str, what: str, size: int, advice: str) -> None:
    """Raise InputError if `size` bytes exceed the machine's memory; without it the system kills the process silently.

    Args:
        flag: the flag that the message names.
        what: the data that needs the memory.
        size: the size in bytes.
        advice: what the user can do.
    """
    memory = machine_memory()
    if memory and size > memory:
        raise InputError(
            f"{flag}: {what} needs {size / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f}; {advice}"
        )


def machine_memory() -> int | None:
    """Return the memory of this machine, or of its container, in bytes; None if it is unknown (on Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, CGROUP_LIMITS):
        with suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(file.read_text()))
    return min(sizes)


def processor_name(device: str) -> str:
    """Return the name of the GPU if the device is a CUDA device, otherwise that of the CPU. "": it is unknown."""
    if resolve_device(device).type == "cuda":
        return torch.cuda.get_device_name(device if device != "auto" else None)
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        if names := [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    return platform.processor()


def pick_device(name: str) -> torch.device:
    """Return the device of --device, for a single process. Raise InputError if it is not available."""
    check_device(name, 1)
    return resolve_device(name)


def check_gpus(device: torch.device, processes: int) -> None:
    """Raise InputError if this machine has fewer GPUs than processes; process i uses GPU i."""
    gpus = torch.cuda.device_count()
    # A launcher may show each process only its own GPU; `check_one_gpu_each` checks that when they have joined.
    sees_only_own = gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if device == torch.device("cuda") and 0 < gpus < processes and not sees_only_own:
        raise InputError(f"{processes} processes on a machine with {gpus} GPUs; start {gpus}, or use --device cpu")


def usable_cores() -> int:
    """Return the number of cores this process may use, which a cluster may limit to fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
