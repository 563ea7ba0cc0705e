"""Signals that ask a run to stop: recorded on arrival, acted on after the current step."""

import multiprocessing
import signal
import threading
import time
from multiprocessing.util import Finalize

from utils import distributed
from utils.distributed import collectives
from utils.errors import EXIT_CODES, Stopped

# Seconds. One Ctrl-C can arrive twice, from the terminal and from the parent process, which forwards it. A SIGINT
# within this time of the first signal is therefore not a second request.
SECOND_SIGINT_AFTER = 1.0


def stop_exception(number: int, where: str) -> Stopped:
    """Return the exception that ends a run after a signal, once its checkpoint is written. Only rank 0 has a message.

    Args:
        number: the signal.
        where: the run's position, such as "epoch 3 and 20 steps".
    """
    name = signal.Signals(number).name
    message = f"stopped by {name} after {where}: checkpoint saved; resume with --resume auto"
    return Stopped(message if distributed.is_main() else "", EXIT_CODES[number])


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 are recorded, to be read with `any_rank_signal`.

    Ctrl-C more than SECOND_SIGINT_AFTER seconds after the first signal raises KeyboardInterrupt: the process ends
    without a new checkpoint, and the last one is kept.
    """

    def __enter__(self) -> "StopSignals":
        self.number, self.arrived = 0, 0.0
        self.old_handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.old_handlers = {number: signal.signal(number, self._record) for number in EXIT_CODES}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.number and now - self.arrived > SECOND_SIGINT_AFTER:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.arrived = number, now

    def any_rank_signal(self) -> int:
        """Return a signal that some rank has received, or 0 if there is none.

        This is a collective operation with the same result on all ranks. All ranks call it after the same steps, and
        therefore stop after the same step.
        """
        return collectives.max_over_ranks(self.number)


def ignore_in_worker(_worker: int) -> None:
    """Ignore the signals in a loader worker: its parent handles them and still needs batches for the last step."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


def _kill_remaining_workers() -> None:
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for a killed worker
    for process in multiprocessing.active_children():
        if process.daemon:  # loader workers are daemons
            process.kill()


# After an error, loader workers may still run. At exit, Python sends them SIGTERM, which they ignore, and would then
# wait for them forever.
Finalize(None, _kill_remaining_workers, exitpriority=10)
