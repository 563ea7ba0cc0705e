"""Tests of `SpinGuard`: when and how it limits spinning, with an unchanged number of threads."""

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
from utils.openmp import BUSY, READINGS_TO_LIMIT, READINGS_TO_RELEASE, SpinGuard

pytestmark = pytest.mark.skipif(openmp._libgomp() is None, reason="PyTorch does not use libgomp here")


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_limit_starts_and_ends_idle_threads():
    guard, before, num_threads = SpinGuard(), count_threads(), torch.get_num_threads()
    for _ in range(2):
        guard.set_limited(True)
        assert count_threads() == before + 1 + usable_cores()  # more than cores: libgomp limits spinning
        guard.set_limited(False)
        while count_threads() > before:  # the system removes ended threads after a moment
            time.sleep(0.01)
    assert torch.get_num_threads() == num_threads


def test_spin_limit_changes_after_consecutive_readings():
    with SpinGuard() as guard:
        for busy in (True, False):
            shares = [BUSY + 0.01 if busy else BUSY - 0.01] * (READINGS_TO_LIMIT if busy else READINGS_TO_RELEASE)
            for share in shares[:-1]:
                guard.add_reading(share)
            assert guard.limited is not busy
            guard.add_reading(1 - shares[-1])  # a contradicting reading resets the count
            for share in shares:
                guard.add_reading(share)
            assert guard.limited is busy


def compute_with_guard(results) -> None:
    """Compute with two threads under the guard beside busy processes, until it limits spinning or a minute is over."""
    torch.set_num_threads(2)
    context = multiprocessing.get_context("fork")
    neighbours = [context.Process(target=spin, daemon=True) for _ in range(2 * usable_cores())]
    for neighbour in neighbours:
        neighbour.start()
    until, numbers = time.monotonic() + 60, torch.randn(300, 300)
    with SpinGuard() as guard:
        while not guard.limited and time.monotonic() < until:
            numbers @ numbers
        results.put((guard.limited, torch.get_num_threads()))
    for neighbour in neighbours:
        neighbour.kill()


def spin() -> None:
    while os.getppid() != 1:
        pass


def test_guard_detects_busy_neighbours():
    start_server()
    results = FORKSERVER.Queue()
    process = FORKSERVER.Process(target=compute_with_guard, args=(results,))
    process.start()
    assert results.get(timeout=120) == (True, 2)
    process.join()


@pytest.mark.parametrize("setting", [None, *openmp.USER_SETTINGS])
def test_guard_is_off_for_one_thread_or_user_settings(setting, monkeypatch):
    before = threading.active_count()
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        if setting:
            monkeypatch.setenv(setting, "1000")
        with SpinGuard():
            assert threading.active_count() == before + (threads > 1 and not setting)
