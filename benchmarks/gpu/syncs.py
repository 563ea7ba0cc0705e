"""Count synchronisations: how often each line of code makes the host wait for the device in a training step.

The counts come from PyTorch's synchronisation debug mode.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.bench_step import NO_FLAGS, step_functions
from benchmarks.gpu.plan import NEEDS_CUDA, REFERENCE_NAME, Plan, free_memory, methods
from benchmarks.gpu.steps import build_reference_step

ROOT = Path(__file__).parent.parent.parent
ASSIGNMENT = "moco/targets/assignment.py"
MAX_LINES = 6  # lines of code listed per table row


def count_syncs(function: Callable[[], object]) -> Counter[str]:
    """Return line of code -> how often it makes the host wait for the device during one call.

    All waits inside the assignment are counted together, under moco/targets/assignment.py.
    """
    counts: Counter[str] = Counter()

    def record(message, *_) -> None:
        if "synchronizing CUDA operation" in str(message):
            counts[_source_line(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return counts


def _source_line(stack: traceback.StackSummary) -> str:
    """Return FILE:LINE of the innermost frame in this project, or ASSIGNMENT if any frame is in the assignment."""
    files = [(Path(frame.filename), frame.lineno) for frame in stack]
    frames = [(file.relative_to(ROOT).as_posix(), line) for file, line in files if file.is_relative_to(ROOT)]
    frames = [(file, line) for file, line in frames if "site-packages" not in file]
    if any(file == ASSIGNMENT for file, _ in frames):
        return ASSIGNMENT
    return "{}:{}".format(*frames[-1]) if frames else "elsewhere"


def measure_syncs(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table with one row per step. Set the metric `syncs`, the counts outside the assignment."""
    metrics["syncs"] = {}
    yield "| one step | waits outside the assignment | waits in the assignment | lines outside the assignment |"
    yield "|---|--:|--:|---|"
    for method, targeted in methods():
        builders = {
            method: lambda targeted=targeted: step_functions(
                plan.device, plan.size, NO_FLAGS, targeted, plan.classes, plan.queue
            )["step"],
            f"{method}, {REFERENCE_NAME}": lambda targeted=targeted: build_reference_step(plan, targeted),
        }
        for name, build in builders.items():
            if plan.smoke_test:
                yield f"| {name} | {NEEDS_CUDA} | {NEEDS_CUDA} | |"
                continue
            counts = count_syncs(build())
            in_assignment = counts.pop(ASSIGNMENT, 0)
            metrics["syncs"][name] = counts.total()
            listed = ", ".join(f"{number} × `{line}`" for line, number in counts.most_common(MAX_LINES))
            more = f" and {len(counts) - MAX_LINES} more lines" if len(counts) > MAX_LINES else ""
            yield f"| {name} | {counts.total()} | {in_assignment} | {listed or '–'}{more} |"
            free_memory()
    yield ""
    yield (
        "PyTorch's debug mode detects blocking copies, `.item()`, `nonzero` and similar calls. It does not detect "
        "waits for an event, which the thread of the assignment uses."
    )
