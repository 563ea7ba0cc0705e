"""--dry-run: estimate the memory of a run, time its first steps, and write no run folder."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from utils import distributed
from utils.devices import machine_memory
from utils.distributed import collectives
from utils.errors import InputError, Stopped
from utils.measure.metrics import shots
from utils.memory import estimate_step, peak_process_memory
from utils.run.loop import ENOUGH_STEPS

STEPS = 3  # timed steps, after one step of warm-up


@contextmanager
def redirect_outputs(plan) -> Iterator:
    """Yield the plan of a stage; with --dry-run, the plan with its outputs in a temporary folder."""
    if not plan.run.dry_run:
        yield plan
        return
    with TemporaryDirectory() as folder:
        yield plan.with_outputs(Path(folder))


class DryRun:
    """Times the first steps of a run.

    Args:
        counts: (C,) training images per class.
        steps: steps per epoch.
        epochs: epochs of the run.
        from_random: whether the run starts from random weights.
    """

    def __init__(self, counts: np.ndarray, steps: int, epochs: int, device: torch.device, from_random: bool = False):
        self.counts, self.steps, self.epochs, self.device = counts, steps, epochs, device
        self.from_random = from_random
        self.ends: list[float] = []

    def after_step(self, model: nn.Module) -> None:
        """Record the time of a step; after the last step, raise Stopped with the estimate as its message."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.perf_counter())
        if len(self.ends) > min(STEPS, self.steps * self.epochs - 1):
            distributed.barrier()
            raise Stopped(self.estimate(model) if distributed.is_main() else "", 0)

    def estimate(self, model: nn.Module) -> str:
        """Return the estimate of the run's time and memory, as lines of text."""
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        groups = ", ".join(f"{shot} {mask.sum()}" for shot, mask in shots(self.counts).items())
        step_seconds = median(np.diff(self.ends)) if len(self.ends) > 1 else float("nan")
        total = self.steps * self.epochs
        lines = [
            f"{self.counts.sum()} training images of {len(self.counts)} classes ({groups}), "
            f"{self.counts.max()} in the largest class, {self.counts.min()} in the smallest",
            f"{trained:,} trainable weights, {count_elements(model):,} numbers in total (with buffers)",
            f"{self.epochs} epochs of {self.steps} steps: {total} steps{self._short(total)}",
            self.peak_memory(),
        ]
        if len(self.ends) > 1:
            eta = timedelta(seconds=round(step_seconds * total))
            lines.append(
                f"{step_seconds:.3g} s per step (median of {len(self.ends) - 1}): about {eta} without validation"
            )
        return (
            "\n".join(f"plan: {line}" for line in lines)
            + "\nno run folder was written; omit --dry-run to start the run"
        )

    def _short(self, total: int) -> str:
        if not self.from_random or total >= ENOUGH_STEPS:
            return ""
        return f". This is short: the recipe of Fashion-MNIST has about {ENOUGH_STEPS}; consider more --epochs"

    def peak_memory(self) -> str:
        """Return the peak memory so far, as text."""
        if self.device.type == "cuda":
            peak, total = torch.cuda.max_memory_allocated(self.device), torch.cuda.mem_get_info(self.device)[1]
            return f"{peak / 2**30:.2f} GiB peak memory on {self.device}, of {total / 2**30:.0f}"
        peak = peak_process_memory()
        return (
            "peak memory is unknown on this system"
            if peak is None
            else f"{peak / 2**30:.2f} GiB peak memory per process"
        )


def count_elements(model: nn.Module) -> int:
    """Return the number of elements of all weights and buffers, including the queue and the key encoder."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def check_memory_of_steps(network: nn.Module, images: int, size: int, compute, optimizer) -> None:
    """Estimate the memory of the training before its first step, and log it.

    All ranks must call this.

    Args:
        network: the network that is trained, on its device.
        images: number of images that pass through it at once. size: their side in pixels.
        compute: the ComputeConfig. optimizer: the OptimizerConfig.

    Raises:
        InputError: the machine, or the GPU, has less memory.
    """
    device, place = compute.device, "this machine"
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    if device.type == "cuda":
        # Includes what other processes use on this GPU.
        free, available = torch.cuda.mem_get_info(device)
        used, place = available - free, str(device)
    else:  # with the images that --cache keeps
        used, available = peak_process_memory() or 0, machine_memory()
    updates = sum(weight.numel() * weight.element_size() for weight in trained) + optimizer.state_bytes(trained)
    step = estimate_step(network, images, size, device, compute.autocast)
    needed, processes = used + updates + step, 1
    if device.type != "cuda":
        processes = distributed.gather_objects(platform.node()).count(platform.node())
        needed *= processes
    parts = {
        "in use before the first step": used,
        "gradients and optimiser": updates,
        f"a step on {images} images": step,
    }
    text = f"memory: about {needed / 2**30:.1f} GiB needed (" + (f"{processes} processes, each " * (processes > 1))
    text += ", ".join(f"{size / 2**30:.1f} {part}" for part, size in parts.items()) + ")"
    text += f"; {place} has {available / 2**30:.1f}" if available else "; the memory of this machine is unknown"
    if collectives.max_over_ranks(available is not None and needed > available):
        advice = "use a smaller -b or --image-size, or another flag of docs/speed.md that saves memory"
        raise InputError(f"{text}; {advice}" if distributed.is_main() else "")  # one process prints for all
    distributed.log(text)
