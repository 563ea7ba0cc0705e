"""When a run's checkpoints are written, and what is in them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from utils import checkpoint, distributed
from utils.metrics import Means
from utils.resolve import plain_args
from utils.signals import StopSignals, stopped


class Keeper:
    """Saves a run at the end of an epoch, every --save-steps steps, and when a signal asks to stop.

    All ranks call it at the same places; the main process writes.

    Args:
        args: the resolved arguments; run_dir, arch, seed and save_steps are used here.
        model: whose state dict is kept. stop: the run's open StopSignals.
        live: gives further entries at the moment of writing.
    """

    def __init__(self, args, model: nn.Module, stop: StopSignals, live: Callable[[], dict] = dict):
        self.args, self.model, self.stop, self.live = args, model, stop, live
        self.run_dir = Path(args.run_dir)
        self.entries: dict = {}

    def begin_epoch(self, epoch: int, step: int, optimizer: torch.optim.Optimizer, means: Means, **entries) -> None:
        """An epoch begins (or goes on) after `epoch` whole epochs and `step` steps; entries go into each checkpoint."""
        self.epoch, self.step, self.optimizer, self.means = epoch, step, optimizer, means
        self.entries |= entries

    def after_step(self) -> None:
        """Count a step; save and stop if that is due.

        Raises:
            Stopped: a signal has asked for it; the checkpoint is written.
        """
        self.step += 1
        if self.args.save_steps and self.step % self.args.save_steps == 0:
            self._write(())
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Also called while nothing trains, between batches of validation. Raises Stopped."""
        if number := self.stop.agreed():
            self._write(())
            distributed.barrier()  # a rank that leaves first would take the writing one down
            raise stopped(number, f"epoch {self.epoch} and {self.step} steps")

    def end_epoch(self, also: tuple[str, ...] = (), **entries) -> None:
        """The epoch is done: last.pth.tar, and copies under the names in `also`."""
        self.epoch, self.step = self.epoch + 1, 0
        self.entries |= entries
        self._write(also)

    def _write(self, also: tuple[str, ...]) -> None:
        means = self.means.state()  # raises if a loss was not finite: nothing is overwritten then
        weights = checkpoint.packed(self.model)
        finite = all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
        if distributed.max_over_ranks(not finite):
            raise self.means.diverged("a weight is not finite", self.step)
        if not distributed.is_main():
            return
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "arch": self.args.arch,
            "state_dict": weights,
            "optimizer": self.optimizer.state_dict(),
            "means": means if self.step else None,
            "processes": distributed.world_size(),
            "seed": self.args.seed,
            "args": plain_args(self.args),
            **self.entries,
            **self.live(),
        }
        checkpoint.save_last(self.run_dir, state, also)
