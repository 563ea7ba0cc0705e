"""Signals that ask a run to stop: noted when they come, acted on after the step."""

import multiprocessing
import signal
import threading
import time
from multiprocessing.util import Finalize

from utils import distributed
from utils.errors import EXIT_CODES, Stopped

IMPATIENT_AFTER = 1.0  # seconds; sooner, a second Ctrl-C is the first one's echo from the launching process


def stopped(number: int, where: str) -> Stopped:
    """The exception that ends a run which has saved itself on a signal; one of its processes says so."""
    name = signal.Signals(number).name
    message = f"stopped by {name} after {where}: saved, --resume auto goes on from there"
    return Stopped(message if distributed.is_main() else "", EXIT_CODES[number])


class StopSignals:
    """While this context is open, SIGTERM, SIGINT and SIGUSR1 wait until `agreed` is asked.

    A Ctrl-C after that does not wait: it raises KeyboardInterrupt, and the last checkpoint stays.
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
        """The signal that any rank has received, the same answer on all ranks; 0 if none has.

        A collective call: all ranks ask after the same steps, and stop after the same one.
        """
        return distributed.max_over_ranks(self.number)


def ignore_in_worker(_worker: int) -> None:
    """A loader worker leaves the signals to its parent, which still needs its batches for the last step."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers_left() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's raises an error for a worker that is killed, anywhere
    for process in multiprocessing.active_children():
        if process.daemon:  # a loader's
            process.kill()


# Workers that an error has left behind: at exit Python ends them by SIGTERM, which they ignore, and waits for ever.
Finalize(None, _kill_workers_left, exitpriority=10)
