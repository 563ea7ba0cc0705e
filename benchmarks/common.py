"""Helpers of the benchmarks: timing, peak memory, Markdown rows and a description of the machine.

A script bench_<name>.py prints one Markdown table. Its optional first argument is the
device: `python -m benchmarks.bench_head cuda`.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import scipy
import torch
import torchvision

HEADER = "| what | time | floor | time ÷ floor | textbook ÷ time | notes |\n|---|--:|--:|--:|--:|---|"


def device() -> torch.device:
    """Return the device given on the command line, or the CPU."""
    return torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")


def seconds(work: Callable[[], object], where: torch.device) -> float:
    """Return the seconds of one call, measured by events on a GPU and by the clock on the CPU."""
    if where.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def interleaved(works: dict[str, Callable[[], object]], where: torch.device, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in each round. Every round runs all calls, so that noise affects all equally."""
    for work in works.values():  # warm-up
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, where))
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Return the median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(times, base, strict=True))


def row(what: str, times: list[float], floor: list[float], textbook: list[float] | None = None, notes: str = "") -> str:
    """Return a table row for HEADER from the seconds of each round."""
    gain = f"{ratio(textbook, times):.2f}" if textbook else "–"
    spent, least = 1000 * median(times), 1000 * median(floor)
    return f"| {what} | {spent:.1f} ms | {least:.1f} ms | {ratio(times, floor):.2f} | {gain} | {notes} |"


def peak_memory(work: Callable[[], object], where: torch.device) -> int:
    """Return the peak bytes of tensors during a call, in addition to those allocated before it."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        before = torch.cuda.memory_allocated(where)
        work()
        return torch.cuda.max_memory_allocated(where) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(np.cumsum([size for _, size in changes]), default=0)


def machine() -> str:
    """Describe the processor, cores, load and library versions, one per line."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"- {names[0] if names else platform.processor()}, {cores} cores, {torch.get_num_threads()} threads",
        f"- load average over the last minute at the start: {os.getloadavg()[0]:.1f} (0 if nothing else was running)",
        f"- Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}",
    ]
    if torch.cuda.is_available():
        lines.append(f"- {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return "\n".join(lines)
