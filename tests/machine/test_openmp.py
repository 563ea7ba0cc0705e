"""`SpinGuard`: when it limits spinning, how, and that the thread count stays."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.processes import FORKSERVER, start_server
from utils import openmp
from utils.devices import usable_cores
from utils.openmp import BUSY, READINGS, SpinGuard

pytestmark = pytest.mark.skipif(openmp._libgomp() is None, reason="PyTorch does not use libgomp here")


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_limiting_adds_threads_that_do_nothing_and_ends_them_again():
    guard, before, computing = SpinGuard(), threads_of_this_process(), torch.get_num_threads()
    for _ in range(2):
        guard.limit(True)
        assert threads_of_this_process() == before + 1 + usable_cores()  # more than cores: libgomp limits spinning
        guard.limit(False)
        while threads_of_this_process() > before:  # the system removes them soon after
            time.sleep(0.01)
    assert torch.get_num_threads() == computing


def test_spinning_is_limited_after_some_busy_readings_and_allowed_after_more_free_ones():
    with SpinGuard() as guard:
        for busy in (True, False):
            shares = [BUSY + 0.01 if busy else BUSY - 0.01] * READINGS[busy]
            for share in shares[:-1]:
                guard.read(share)
            assert guard.limited is not busy
            guard.read(1 - shares[-1])  # one that disagrees: the count starts again
            for share in shares:
                guard.read(share)
            assert guard.limited is busy


def guarded(results) -> None:
    """Compute with two threads under the guard, beside busy processes, until it limits spinning; at most a minute."""
    torch.set_num_threads(2)
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=spin, daemon=True) for _ in range(2 * usable_cores())]
    for other in others:
        other.start()
    until, numbers = time.monotonic() + 60, torch.randn(300, 300)
    with SpinGuard() as guard:
        while not guard.limited and time.monotonic() < until:
            numbers @ numbers
        results.put((guard.limited, torch.get_num_threads()))
    for other in others:
        other.kill()


def spin() -> None:
    while os.getppid() != 1:
        pass


def test_busy_neighbours_are_noticed():
    start_server()
    results = FORKSERVER.Queue()
    program = FORKSERVER.Process(target=guarded, args=(results,))
    program.start()
    assert results.get(timeout=120) == (True, 2)
    program.join()


@pytest.mark.parametrize("setting", [None, *openmp.OWN_SETTINGS])
def test_one_thread_needs_no_guard_and_the_users_own_setting_is_left_alone(setting, monkeypatch):
    before = threading.active_count()
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        if setting:
            monkeypatch.setenv(setting, "1000")
        with SpinGuard():
            assert threading.active_count() == before + (threads > 1 and not setting)
