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

from utils.devices import processor_name

HEADER = "| measurement | time | floor | time ÷ floor | textbook ÷ time | notes |\n|---|--:|--:|--:|--:|---|"


def device_from_argv() -> torch.device:
    """Return the device given on the command line, or the CPU."""
    return torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes. CUDA events measure it on a GPU, the clock on the CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def time_interleaved(
    functions: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Return function name -> seconds of each round.

    Each round calls every function once, so that noise on the machine affects all functions equally.
    """
    for function in functions.values():  # warm-up, not timed
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(time_call(function, device))
    return times


def median_ratio(times: list[float], base: list[float]) -> float:
    """Return the median over rounds of times / base. Both have one value per round."""
    return median(a / b for a, b in zip(times, base, strict=True))


def row(name: str, times: list[float], floor: list[float], textbook: list[float] | None = None, notes: str = "") -> str:
    """Return a table row for HEADER. `times`, `floor` and `textbook` are the seconds of each round."""
    speedup = f"{median_ratio(textbook, times):.2f}" if textbook else "–"
    median_ms, floor_ms = 1000 * median(times), 1000 * median(floor)
    return (
        f"| {name} | {median_ms:.1f} ms | {floor_ms:.1f} ms | {median_ratio(times, floor):.2f} | {speedup} | {notes} |"
    )


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory of tensors during a call, in bytes, without the memory allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(np.cumsum([size for _, size in changes]), default=0)


def describe_machine() -> str:
    """Return a Markdown list of the processor, its cores, the load and the library versions."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"- {processor_name('cpu')}, {cores} cores, {torch.get_num_threads()} threads",
        f"- load average over the last minute at the start: {os.getloadavg()[0]:.1f} (0 if nothing else was running)",
        f"- Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}",
    ]
    if torch.cuda.is_available():
        lines.append(f"- {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return "\n".join(lines)
