"""Report a run that is slow because its process waits for cores, or that has become slow."""

import os
import threading
import time
from pathlib import Path

from utils.distributed import log
from utils.openmp import BUSY, seconds_without_core

WINDOW_SECONDS, WINDOW_STEPS = 60, 10  # one reading covers at least this time of training and this many steps
SLOWER = 2  # a step that takes this many times as long as in the first reading is reported


class SlowdownHint:
    """Logs one note per launch if the process waits for cores, or if steps take much longer than at first.

    Args:
        schedule: the file schedstat of the training thread in /proc; None: that of the current thread. On systems
            without this file, only the time of steps is compared.
    """

    def __init__(self, schedule: Path | None = None):
        self.schedule = schedule or Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self.first_pace: float | None = None
        self.logged = False
        self._start_reading()

    def _start_reading(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self.started, self.waited = time.monotonic(), self._read_waiting()

    def _read_waiting(self) -> float:
        try:
            return seconds_without_core(self.schedule)
        except (OSError, IndexError):
            return 0.0

    def step(self, seconds: float) -> None:
        """Count a training step and the seconds that it took."""
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1
        if self.logged or self.seconds < WINDOW_SECONDS or self.steps < WINDOW_STEPS:
            return
        pace = self.seconds / self.steps
        self.first_pace = self.first_pace or pace
        share = (self._read_waiting() - self.waited) / max(self.seconds, time.monotonic() - self.started)
        if share > BUSY:
            self._log(
                f"for {100 * share:.0f} % of the time, training waits for a core. Other programs use the cores, or -j "
                "starts too many loader processes"
            )
        elif pace > SLOWER * self.first_pace:
            self._log(
                f"a step now takes {pace:.2g} s, at first {self.first_pace:.2g} s. Other programs may use the cores, "
                "the device or the disk"
            )
        self._start_reading()

    def _log(self, text: str) -> None:
        load = (
            f" (load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)" if hasattr(os, "getloadavg") else ""
        )
        log(f"note: {text}{load}; docs/speed.md lists what to check")
        self.logged = True
