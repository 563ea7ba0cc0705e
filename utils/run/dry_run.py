"""--dry-run: time the first steps of a run, estimate its time and memory, and write nothing."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from utils import distributed
from utils.errors import Stopped
from utils.measure.metrics import shots

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
    """

    def __init__(self, counts: np.ndarray, steps: int, epochs: int, device: torch.device):
        self.counts, self.steps, self.epochs, self.device = counts, steps, epochs, device
        self.ends: list[float] = []

    def after_step(self, model: torch.nn.Module) -> None:
        """Record the time of a step; after the last step, raise Stopped with the estimate as its message."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.perf_counter())
        if len(self.ends) > min(STEPS, self.steps * self.epochs - 1):
            distributed.barrier()
            raise Stopped(self.estimate(model) if distributed.is_main() else "", 0)

    def estimate(self, model: torch.nn.Module) -> str:
        """Return the estimate of the run's time and memory, as lines of text."""
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        groups = ", ".join(f"{shot} {mask.sum()}" for shot, mask in shots(self.counts).items())
        step_seconds = median(np.diff(self.ends)) if len(self.ends) > 1 else float("nan")
        total = self.steps * self.epochs
        lines = [
            f"{self.counts.sum()} training images of {len(self.counts)} classes ({groups}), "
            f"{self.counts.max()} in the largest class, {self.counts.min()} in the smallest",
            f"{trained:,} trainable weights, {count_elements(model):,} numbers in total (with buffers)",
            f"{self.epochs} epochs of {self.steps} steps: {total} steps",
            self.peak_memory(),
        ]
        if len(self.ends) > 1:
            eta = timedelta(seconds=round(step_seconds * total))
            lines.append(
                f"{step_seconds:.3g} s per step (median of {len(self.ends) - 1}): about {eta} without validation"
            )
        return "\n".join(f"plan: {line}" for line in lines) + "\nnothing was written; omit --dry-run to start the run"

    def peak_memory(self) -> str:
        """Return the peak memory so far, as text."""
        if self.device.type == "cuda":
            peak, total = torch.cuda.max_memory_allocated(self.device), torch.cuda.mem_get_info(self.device)[1]
            return f"{peak / 2**30:.2f} GiB peak memory on {self.device}, of {total / 2**30:.0f}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return f"{peak:.2f} GiB peak memory per process"


def count_elements(model: torch.nn.Module) -> int:
    """Return the number of elements of all weights and buffers, including the queue and the key encoder."""
    return sum(tensor.numel() for tensor in model.state_dict().values())
