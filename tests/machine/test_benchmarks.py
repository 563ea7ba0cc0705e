"""Tests of the benchmark helpers: peak memory, ratios, table rows."""

import sys

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import common

CPU = torch.device("cpu")


def test_peak_memory_is_largest_sum_of_live_tensors():
    def work() -> None:
        for _ in range(3):
            first = torch.zeros(1000, 250)  # 1 MB
            second = first + 1
            del first, second

    assert common.peak_memory(work, CPU) == pytest.approx(2_000_000, rel=0.01)


def test_ratio_is_computed_within_each_round():
    """The machine is ten times slower in the second round, but the ratio is 2 in every round."""
    assert common.median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2
    line = common.row("work", [0.002, 0.02, 0.002], [0.001, 0.01, 0.001], [0.006, 0.06, 0.006], "note")
    assert line == "| work | 2.0 ms | 1.0 ms | 2.00 | 3.00 | note |"
    assert line.count("|") == common.HEADER.splitlines()[0].count("|")


def test_interleaved_runs_every_function_each_round():
    order = []
    times = common.time_interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=2)
    assert order == ["a", "b"] * 3  # the first round warms up
    assert len(times["a"]) == len(times["b"]) == 2


def test_unknown_benchmark_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "bench_nothing"])
    with pytest.raises(SystemExit, match=r"bench_nothing.*bench_head"):
        runner.main()
