"""When a run's checkpoints are written."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from utils import distributed
from utils.measure.metrics import Means
from utils.measure.rehearsal import Rehearsal
from utils.randomness import Stream, counted_seed
from utils.run import checkpoint
from utils.run.loop import Epoch
from utils.run.signals import StopSignals, stopped
from utils.run.state import RunState


class Keeper:
    """Saves a run at the end of an epoch, every so many steps, and when a signal asks to stop.

    All ranks call it at the same places; the main process writes.

    Args:
        run_dir: where. state: the run's, which this moves on. model: whose weights are kept.
        stop: the run's open StopSignals. save_steps: 0 for the ends of epochs alone.
        live: called before each writing, to bring into the state what else belongs there.
        rehearsal: of a run that ends after some steps.
    """

    def __init__(
        self,
        run_dir: Path,
        state: RunState,
        model: nn.Module,
        stop: StopSignals,
        save_steps: int = 0,
        live: Callable[[RunState], None] = lambda state: None,
        rehearsal: Rehearsal | None = None,
    ):
        self.run_dir, self.state, self.model = run_dir, state, model
        self.stop, self.save_steps, self.live, self.rehearsal = stop, save_steps, live, rehearsal
        self.measured = False

    def begin_epoch(self, epoch: Epoch, optimizer: torch.optim.Optimizer, means: Means) -> None:
        """An epoch begins, or goes on."""
        self.state.phase, self.state.epoch, self.state.step = epoch.phase.name, epoch.number, epoch.first_step
        self.optimizer, self.means = optimizer, means

    def before_step(self) -> None:
        """What layers draw, dropout and its like, is a function of the step, on each rank another."""
        place = self.state.epoch, self.state.step, distributed.rank()
        torch.manual_seed(counted_seed(self.state.seed, Stream.LAYERS, *place))

    def after_step(self) -> None:
        """Count a step; save and stop if that is due.

        Raises:
            Stopped: a signal has asked for it; the checkpoint is written. Or the rehearsal is over.
        """
        self.state.step += 1
        if self.rehearsal:
            self.rehearsal.after_step(self.model)
        if self.save_steps and self.state.step % self.save_steps == 0:
            self._write(())
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Also called while nothing trains, between batches of validation. Raises Stopped."""
        if number := self.stop.agreed():
            self._write(())
            distributed.barrier()  # a rank that leaves first would take the writing one down
            raise stopped(number, str(self.state))

    def before_measuring(self, due: bool) -> None:
        """Save what has been trained, the first time since the start: a broken image of validation costs no epoch."""
        if due and not self.measured:
            self.measured = True
            self._write(())

    def end_epoch(self, also: tuple[str, ...] = ()) -> None:
        """The epoch is done: last.pth.tar, and copies under the names in `also`."""
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        self._write(also)

    def _write(self, also: tuple[str, ...]) -> None:
        means = self.means.state()  # raises if a loss was not finite: nothing is overwritten then
        weights = self.model.state_dict().values()
        finite = all(tensor.isfinite().all() for tensor in weights if tensor.is_floating_point())
        if distributed.max_over_ranks(not finite):
            raise self.means.diverged("a weight is not finite", self.state.step)
        if not distributed.is_main():
            return
        self.state.means = means if self.state.step else None
        self.state.processes = distributed.world_size()
        self.live(self.state)
        checkpoint.save_last(self.run_dir, self.state.to_dict(self.model, self.optimizer), also)
