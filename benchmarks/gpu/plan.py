"""The sizes of the measurements: real sizes on a GPU, tiny sizes in a smoke test on the CPU."""

import gc
from typing import NamedTuple

import torch

from benchmarks.bench_head import C, Q
from utils.distributed.launch import MAX_WORKERS, usable_cores

FAST = {"amp": "bf16", "channels_last": True, "compile": True}
INATURALIST_CLASSES = 8142
# A float32 step of resnet50 at 224 px needs about 0.1 GiB per image, plus weights, queue and workspace.
GIB_PER_IMAGE, GIB_FIXED = 0.11, 4
FAST_NAME = "bf16 + channels-last + compile"  # name of FAST in tables
REFERENCE_NAME = "authors' code"  # name of the step in reference_step.py in tables
NEEDS_CUDA = "needs CUDA"


class Plan(NamedTuple):
    """The sizes and flags of all measurements.

    Attributes:
        size: Architecture, pixels and batch size of a step.
        fast_flags: Arguments of ComputeConfig for the fast step.
        classes: Number of classes, as in ImageNet-LT.
        many_classes: Number of classes, as in iNaturalist.
        queue: Length of the queue.
        rounds: Number of timed rounds.
        agreement_size: Architecture, pixels and batch size of the step that is compared between CPU and GPU.
        workers: Number of data-loading processes.
    """

    device: torch.device
    size: tuple[str, int, int]
    fast_flags: dict
    classes: int
    many_classes: int
    queue: int
    rounds: int
    agreement_size: tuple[str, int, int]
    workers: int

    @property
    def smoke_test(self) -> bool:
        """Whether this is a smoke test on the CPU."""
        return self.device.type != "cuda"

    @property
    def fast_name(self) -> str:
        return FAST_NAME if self.fast_flags["compile"] else f"{FAST_NAME} (compile {NEEDS_CUDA})"


def full_plan() -> Plan:
    """Return the real sizes: resnet50 at 224 px, with the largest batch up to 256 that fits on the GPU in float32."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    batch = next((size for size in (256, 128, 64) if size * GIB_PER_IMAGE + GIB_FIXED <= memory), 32)
    workers = min(usable_cores(), MAX_WORKERS)
    device = torch.device("cuda", 0)
    return Plan(device, ("resnet50", 224, batch), FAST, C, INATURALIST_CLASSES, Q, 15, ("resnet50", 64, 32), workers)


def smoke_plan() -> Plan:
    """Return tiny sizes for a smoke test on the CPU: resnet20 at 8 px, uncompiled. Its numbers are meaningless."""
    fast_flags, tiny = FAST | {"compile": False}, ("resnet20", 8, 32)
    return Plan(torch.device("cpu"), tiny, fast_flags, 20, 40, 256, 2, tiny, workers=1)


def methods() -> tuple[tuple[str, bool], ...]:
    """Return the name of each method, and whether it is targeted."""
    return ("KCL", False), ("TSC", True)


def free_memory() -> None:
    """Free the memory and the compiled code of the last measurement."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()  # torch.compile keeps at most eight versions of a function
        torch.cuda.empty_cache()
