"""Count where the host waits for the device in a step, per line of code, with PyTorch's synchronisation debug mode."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.bench_step import PLAIN, works
from benchmarks.gpu.plan import NEEDS_CUDA, Plan, forget_models, methods
from benchmarks.gpu.steps import release_step

ROOT = Path(__file__).parent.parent.parent
ASSIGNMENT = "moco/targets/assignment.py"
LISTED = 6  # lines of code named per table row


def waits(work: Callable[[], object]) -> Counter[str]:
    """Count how often a call waits for the device, per line of this project.

    All waits inside the assignment are counted together, under moco/targets/assignment.py.
    """
    found: Counter[str] = Counter()

    def note(message, *_) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_place(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def _place(stack: traceback.StackSummary) -> str:
    files = [(Path(frame.filename), frame.lineno) for frame in stack]
    ours = [(file.relative_to(ROOT).as_posix(), line) for file, line in files if file.is_relative_to(ROOT)]
    ours = [(file, line) for file, line in ours if "site-packages" not in file]
    if any(file == ASSIGNMENT for file, _ in ours):
        return ASSIGNMENT
    return "{}:{}".format(*ours[-1]) if ours else "elsewhere"


def synchronisations(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table with one row per step. Set the fact `waits`, outside the assignment."""
    facts["waits"] = {}
    yield "| one step | waits outside the assignment | in the assignment | where, outside |"
    yield "|---|--:|--:|---|"
    for method, targeted in methods():
        makers = {
            method: lambda targeted=targeted: works(plan.where, plan.size, PLAIN, targeted, plan.classes, plan.queue)[
                "step"
            ],
            f"{method}, the release's way": lambda targeted=targeted: release_step(plan, targeted),
        }
        for name, make in makers.items():
            if plan.rehearsal:
                yield f"| {name} | {NEEDS_CUDA} | {NEEDS_CUDA} | |"
                continue
            found = waits(make())
            inside = found.pop(ASSIGNMENT, 0)
            facts["waits"][name] = found.total()
            places = ", ".join(f"{number} × `{place}`" for place, number in found.most_common(LISTED))
            more = f" and {len(found) - LISTED} more lines" if len(found) > LISTED else ""
            yield f"| {name} | {found.total()} | {inside} | {places or '–'}{more} |"
            forget_models()
    yield ""
    yield (
        "PyTorch's debug mode detects blocking copies, `.item()`, `nonzero` and similar calls. It does not detect a "
        "wait for an event, which the assignment's thread uses."
    )
