"""The sizes at which the parts measure: real sizes on a GPU, tiny sizes in a rehearsal on the CPU."""

import gc
from typing import NamedTuple

import torch

from benchmarks.bench_head import C, Q
from utils.run.launch import MAX_WORKERS, usable_cores

FAST = {"amp": "bf16", "channels_last": True, "compile": True}
INATURALIST = 8142  # classes
# A float32 step of resnet50 at 224 px needs about 0.1 GiB per image, plus weights, queue and workspace.
GIB_AN_IMAGE, GIB_BESIDE = 0.11, 4
FAST_NAME, NEEDS_CUDA = "bf16 + channels-last + compile", "needs CUDA"


class Plan(NamedTuple):
    """The sizes and flags of all measurements.

    Attributes:
        where: the device. size: arch, pixels and batch of a step. fast: flags of the fast step, compared with none.
        classes, many_classes: numbers of classes, as in ImageNet-LT and iNaturalist. queue: queue length.
        rounds: timed rounds. agree: arch, pixels and batch of the step compared between CPU and GPU.
        workers: loader processes.
    """

    where: torch.device
    size: tuple[str, int, int]
    fast: dict
    classes: int
    many_classes: int
    queue: int
    rounds: int
    agree: tuple[str, int, int]
    workers: int

    @property
    def rehearsal(self) -> bool:
        return self.where.type != "cuda"

    @property
    def fast_name(self) -> str:
        return FAST_NAME if self.fast["compile"] else f"{FAST_NAME} (compile {NEEDS_CUDA})"


def full() -> Plan:
    """Return the real sizes: resnet50 at 224 px, with the largest batch up to 256 that fits the GPU in float32."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    batch = next((b for b in (256, 128, 64) if b * GIB_AN_IMAGE + GIB_BESIDE <= memory), 32)
    workers = min(usable_cores(), MAX_WORKERS)
    where = torch.device("cuda", 0)
    return Plan(where, ("resnet50", 224, batch), FAST, C, INATURALIST, Q, 15, ("resnet50", 64, 32), workers)


def rehearsal() -> Plan:
    """Return tiny sizes for the CPU: resnet20 at 8 px, uncompiled. It takes seconds; the numbers are meaningless."""
    fast, tiny = FAST | {"compile": False}, ("resnet20", 8, 32)
    return Plan(torch.device("cpu"), tiny, fast, 20, 40, 256, 2, tiny, workers=1)


def methods() -> tuple[tuple[str, bool], ...]:
    """Return the methods' names, and whether each is targeted."""
    return ("KCL", False), ("TSC", True)


def forget_models() -> None:
    """Free the last measurement's memory and compiled code, as torch.compile keeps at most eight versions."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
