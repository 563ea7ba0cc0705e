"""--dry-run: a run's first steps, what it will take, and nothing left of it."""

import argparse
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
from utils.errors import InputError, Stopped
from utils.measure.metrics import shots

STEPS = 3  # that are timed, after one that is not


def check(args: argparse.Namespace) -> None:
    """Raises InputError: arguments with which there are no first steps."""
    if args.dry_run and args.resume:
        raise InputError("--dry-run: is of a run's first steps; leave --resume out")


@contextmanager
def aside(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The arguments, of a --dry-run with a folder in place of the run's, and of targets to make, that goes again."""
    if not args.dry_run:
        yield args
        return
    with TemporaryDirectory() as folder:
        given = vars(args) | {"run_dir": str(Path(folder) / "run")}
        if given.get("targeted") and not given["targets"]:
            given["targets"] = str(Path(folder) / "targets.npy")
        yield type(args)(argparse.Namespace(**given))


class Rehearsal:
    """The first steps of a run, timed.

    Args:
        counts: (C,) training images of a class. steps: of an epoch. epochs: of the run.
    """

    def __init__(self, counts: np.ndarray, steps: int, epochs: int, device: torch.device):
        self.counts, self.steps, self.epochs, self.device = counts, steps, epochs, device
        self.ends: list[float] = []

    @classmethod
    def asked(cls, args: argparse.Namespace, loader) -> "Rehearsal | None":
        """Of --dry-run; None without it."""
        if not args.dry_run:
            return None
        return cls(loader.dataset.class_counts, len(loader), args.epochs, loader.normalise.device)

    def after_step(self, model: torch.nn.Module) -> None:
        """Note the time; after the last step the plan. Raises Stopped, with it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.perf_counter())
        if len(self.ends) > min(STEPS, self.steps * self.epochs - 1):
            distributed.barrier()
            raise Stopped(self.plan(model) if distributed.is_main() else "", 0)

    def plan(self, model: torch.nn.Module) -> str:
        """What the run will take, in lines."""
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        parts = ", ".join(f"{shot} {mask.sum()}" for shot, mask in shots(self.counts).items())
        a_step = median(np.diff(self.ends)) if len(self.ends) > 1 else float("nan")
        total = self.steps * self.epochs
        lines = [
            f"{self.counts.sum()} training images of {len(self.counts)} classes ({parts}), "
            f"{self.counts.max()} of the largest, {self.counts.min()} of the smallest",
            f"{trained:,} weights that train, of {numbers_in(model):,} numbers in all",
            f"{self.epochs} epochs of {self.steps} steps: {total} steps",
            self.memory(),
        ]
        if len(self.ends) > 1:
            eta = timedelta(seconds=round(a_step * total))
            lines.append(f"{a_step:.3g} s a step, the median of {len(self.ends) - 1}: about {eta} without validation")
        return "\n".join(f"plan: {line}" for line in lines) + "\nnothing was written; without --dry-run it runs"

    def memory(self) -> str:
        if self.device.type == "cuda":
            peak, there = torch.cuda.max_memory_allocated(self.device), torch.cuda.mem_get_info(self.device)[1]
            return f"{peak / 2**30:.2f} GiB of {self.device}'s memory at the peak, of {there / 2**30:.0f}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return f"{peak:.2f} GiB of memory of a process at the peak"


def numbers_in(model: torch.nn.Module) -> int:
    """Of weights and buffers: a queue and a key encoder too."""
    return sum(tensor.numel() for tensor in model.state_dict().values())
