"""Signals that ask a run to stop: recorded on arrival, acted on after the current step."""

import multiprocessing
import signal
import threading
import time
from multiprocessing.util import Finalize

from utils import distributed
from utils.errors import EXIT_CODES, Stopped

IMPATIENT_AFTER = 1.0  # seconds; an earlier second Ctrl-C is the first one, forwarded by the launching process


def stopped(number: int, where: str) -> Stopped:
    """Return the exception that ends a run after a signal, when its checkpoint is written; only rank 0 has a message.

    where: the run's position, such as "epoch 3 and 20 steps".
    """
    name = signal.Signals(number).name
    message = f"stopped by {name} after {where}: checkpoint saved; resume with --resume auto"
    return Stopped(message if distributed.is_main() else "", EXIT_CODES[number])


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 are recorded, to be read with `agreed`.

    A second Ctrl-C raises KeyboardInterrupt immediately, and the last checkpoint is kept.
    """

    def __enter__(self) -> "StopSignals":
        self.number, self.since = 0, 0.0
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.number and now - self.since > IMPATIENT_AFTER:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, now

    def agreed(self) -> int:
        """Return a signal that some rank has received, or 0; the result is equal on all ranks.

        This is a collective call: all ranks make it after the same steps, and stop after the same step.
        """
        return distributed.max_over_ranks(self.number)


def ignore_in_worker(_worker: int) -> None:
    """Ignore the signals in a loader worker: its parent handles them and still needs batches for the last step."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers_left() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for a killed worker
    for process in multiprocessing.active_children():
        if process.daemon:  # loader workers are daemons
            process.kill()


# After an error, loader workers may remain. Python ends them with SIGTERM at exit, which they ignore, and would wait
# for them without end.
Finalize(None, _kill_workers_left, exitpriority=10)
