"""The tests that need a GPU, before anything is measured on it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.plan import NEEDS_CUDA, Plan

ROOT = Path(__file__).parent.parent.parent


def lines_of(command: list[str]) -> Iterator[str]:
    """What a command prints, line by line; it ends with whoever reads it.

    Raises:
        RuntimeError: its exit code is not 0.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield from (line.rstrip("\n") for line in process.stdout)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}")


def tests(plan: Plan, facts: dict) -> Iterator[str]:
    """pytest -m gpu, shown as it runs; the page gets its last line.

    Raises:
        RuntimeError: a test has failed.
    """
    if plan.rehearsal:
        yield f"`pytest -m gpu`: {NEEDS_CUDA}"
        return
    last = ""
    for line in lines_of([sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--color=no"]):
        print(line, flush=True)
        last = line.strip() or last
    yield f"`pytest -m gpu`: {last}"
