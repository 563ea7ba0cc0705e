"""Write the checkpoints of a run at the right moments."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from utils import distributed
from utils.distributed import collectives
from utils.measure.metrics import Means
from utils.run import checkpoint
from utils.run.dry_run import DryRun
from utils.run.loop import Epoch
from utils.run.signals import StopSignals, stop_exception
from utils.run.state import RunState


class Checkpointer:
    """Saves a run at the end of each epoch, every `save_steps` steps, and when a signal asks it to stop.

    All ranks call the methods at the same points; the main process writes.

    Args:
        run_dir: the run folder.
        state: the state of the run, which this class updates.
        model: the model to save.
        stop: the StopSignals context of the run.
        save_steps: steps between checkpoints; 0: only at the ends of epochs.
        collect_state: called before each write to add the method's current values to the state.
        dry_run: the timer of --dry-run, which ends the run after a few steps.
    """

    def __init__(
        self,
        run_dir: Path,
        state: RunState,
        model: nn.Module,
        stop: StopSignals,
        save_steps: int = 0,
        collect_state: Callable[[RunState], None] = lambda state: None,
        dry_run: DryRun | None = None,
    ):
        self.run_dir, self.state, self.model = run_dir, state, model
        self.stop, self.save_steps, self.collect_state, self.dry_run = stop, save_steps, collect_state, dry_run
        self._has_measured = False  # in this launch of the program

    def begin_epoch(self, epoch: Epoch, optimizer: torch.optim.Optimizer, means: Means) -> None:
        """Start an epoch, or resume one in the middle."""
        self.state.phase, self.state.epoch, self.state.step = epoch.phase.name, epoch.number, epoch.first_step
        self.optimizer, self.means = optimizer, means

    def after_step(self) -> None:
        """Count a step, and save or stop if that is due.

        Raises:
            Stopped: a signal has asked the run to stop, and the checkpoint is written; or the dry run is complete.
        """
        self.state.step += 1
        if self.dry_run:
            self.dry_run.after_step(self.model)
        if self.save_steps and self.state.step % self.save_steps == 0:
            self._write(())
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Save and raise Stopped if a signal has arrived; also called between validation batches."""
        if number := self.stop.any_rank_signal():
            self._write(())
            distributed.barrier()  # a rank that exits early would end the rank that still writes
            raise stop_exception(number, str(self.state))

    def save_before_first_measurement(self, due: bool) -> None:
        """Save if a measurement is due, and no measurement has been made since the program was launched.

        A validation image that cannot be read then does not cost an epoch of training. Later measurements read the
        same images, so nothing is saved before them.
        """
        if due and not self._has_measured:
            self._has_measured = True
            self._write(())

    def end_epoch(self, also: tuple[str, ...] = ()) -> None:
        """Complete the epoch: write last.pth.tar, and copies under the names in `also`."""
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        self._write(also)

    def _write(self, also: tuple[str, ...]) -> None:
        means = self.means.state()  # raises if a loss was not finite, before anything is overwritten
        weights = self.model.state_dict().values()
        finite = all(tensor.isfinite().all() for tensor in weights if tensor.is_floating_point())
        if collectives.max_over_ranks(not finite):
            raise self.means.divergence_error("a weight is not finite", self.state.step)
        if not distributed.is_main():
            return
        self.state.means = means if self.state.step else None
        self.state.processes = distributed.world_size()
        self.collect_state(self.state)
        checkpoint.save_last(self.run_dir, self.state.to_dict(self.model, self.optimizer), also)
