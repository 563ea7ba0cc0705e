"""At which sizes the parts measure: the real ones on a GPU, tiny ones in a rehearsal on the CPU."""

import gc
from typing import NamedTuple

import torch

from benchmarks.bench_head import C, Q
from utils.run.launch import MAX_WORKERS, usable_cores

FAST = {"amp": "bf16", "channels_last": True, "compile": True}
INATURALIST = 8142  # classes
# A float32 step of resnet50 at 224 px holds about 0.1 GiB an image; beside it weights, queue and workspace.
GIB_AN_IMAGE, GIB_BESIDE = 0.11, 4
FAST_NAME, NEEDS_CUDA = "bf16 + channels-last + compile", "needs CUDA"


class Plan(NamedTuple):
    """where: the device. size: arch, pixels, batch of a step. fast: the flags that the plain step is compared with.
    classes, many_classes: ImageNet-LT's and iNaturalist's. agree: arch, pixels, batch of the step done on CPU and GPU.
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
    """resnet50 at 224 px, at the largest batch up to 256 that the GPU's memory holds in float32."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    batch = next((b for b in (256, 128, 64) if b * GIB_AN_IMAGE + GIB_BESIDE <= memory), 32)
    workers = min(usable_cores(), MAX_WORKERS)
    where = torch.device("cuda", 0)
    return Plan(where, ("resnet50", 224, batch), FAST, C, INATURALIST, Q, 15, ("resnet50", 64, 32), workers)


def rehearsal() -> Plan:
    """resnet20 at 8 px on the CPU, uncompiled: seconds, and no number that means anything."""
    fast, tiny = FAST | {"compile": False}, ("resnet20", 8, 32)
    return Plan(torch.device("cpu"), tiny, fast, 20, 40, 256, 2, tiny, workers=1)


def methods() -> tuple[tuple[str, bool], ...]:
    """Names, and whether the model is targeted."""
    return ("KCL", False), ("TSC", True)


def forget_models() -> None:
    """Free what the last measurement held, compiled code too: a process may hold eight versions of a function."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
