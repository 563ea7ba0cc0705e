"""Keep PyTorch's idle OpenMP threads from spinning while other processes need the cores.

Between two parallel operations, the threads of libgomp (the OpenMP library of PyTorch's Linux packages) look for work
300,000 times before they sleep. That is fastest while the cores are free. If another process takes the core of one
thread, the others spin through their time slices until that thread gets its core back, and training can take ten times
as long. For programs with more threads than cores, libgomp looks only 1,000 times. `SpinGuard` switches to that limit
and back by adding threads that do nothing. The number of threads that compute stays the same, and so do all results.

`python -m benchmarks.bench_threads` measures both situations.
"""

import ctypes
import os
import threading
from pathlib import Path

import torch

from utils.devices import usable_cores

INTERVAL = 0.5  # seconds between two readings
BUSY = 0.2  # share of the time for which a thread that could run has no core
READINGS_TO_LIMIT, READINGS_TO_RELEASE = 2, 10  # consecutive readings before spinning is limited, or allowed again
USER_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # the user's decision about spinning


class SpinGuard:
    """While this context is open, limit spinning whenever the thread that opened it has to wait for a core.

    Does nothing with a single OpenMP thread, with another OpenMP library, outside Linux, or if the user has set
    GOMP_SPINCOUNT or OMP_WAIT_POLICY.

    Attributes:
        limited: whether spinning is limited now.
    """

    def __init__(self):
        self.limited, self._readings = False, 0
        self._stop, self._release = threading.Event(), threading.Event()
        self._library = _libgomp()
        self._watcher: threading.Thread | None = None
        self._idle_team: threading.Thread | None = None

    def __enter__(self) -> "SpinGuard":
        if self._library and torch.get_num_threads() > 1 and not any(name in os.environ for name in USER_SETTINGS):
            schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
            self._watcher = threading.Thread(target=self._watch, args=(schedule,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._watcher:
            self._watcher.join()
        self.set_limited(False)

    def _watch(self, schedule: Path) -> None:
        try:
            previous = seconds_without_core(schedule)
            while not self._stop.wait(INTERVAL):
                current = seconds_without_core(schedule)
                self.add_reading((current - previous) / INTERVAL)
                previous = current
        except OSError:  # no /proc, or the thread has ended
            self.set_limited(False)

    def add_reading(self, share: float) -> None:
        """Add a reading: the share of the last interval for which the thread waited for a core."""
        busy = share > BUSY
        self._readings = self._readings + 1 if busy != self.limited else 0
        if self._readings >= (READINGS_TO_LIMIT if busy else READINGS_TO_RELEASE):
            self.set_limited(busy)

    def set_limited(self, limited: bool) -> None:
        """Limit spinning, or allow it again."""
        if limited == self.limited:
            return
        self.limited, self._readings = limited, 0
        if limited:
            ready = threading.Event()
            self._release.clear()
            self._idle_team = threading.Thread(target=self._run_idle_team, args=(ready,), daemon=True)
            self._idle_team.start()
            ready.wait()
        else:
            self._release.set()  # libgomp ends the threads of a team with the thread that started it
            self._idle_team.join()

    def _run_idle_team(self, ready: threading.Event) -> None:
        """Start a team of more threads than cores, which runs an empty function once and then sleeps."""
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL)
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(usable_cores() + 1), ctypes.c_uint(0))
        ready.set()
        self._release.wait()


def seconds_without_core(schedule: Path) -> float:
    """Return the seconds for which a thread could run and had no core, from its file schedstat in /proc."""
    return int(schedule.read_text().split()[1]) / 1e9


def _libgomp() -> ctypes.CDLL | None:
    """Return the libgomp that PyTorch has loaded, or None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    path = next((line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libgomp" in line), None)
    return ctypes.CDLL(path) if path else None
