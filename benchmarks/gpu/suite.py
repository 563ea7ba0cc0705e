"""Run the tests that need a GPU, before the measurements."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.plan import NEEDS_CUDA, Plan

ROOT = Path(__file__).parent.parent.parent


def lines_of(command: list[str]) -> Iterator[str]:
    """Run a command and yield its output lines. If the generator is closed, the command is terminated.

    Raises:
        RuntimeError: the exit code is not 0.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield from (line.rstrip("\n") for line in process.stdout)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {process.returncode}")


def tests(plan: Plan, facts: dict) -> Iterator[str]:
    """Run pytest -m gpu and print its output. Yield the last line, for the page.

    Raises:
        RuntimeError: a test failed.
    """
    if plan.rehearsal:
        yield f"`pytest -m gpu`: {NEEDS_CUDA}"
        return
    last = ""
    for line in lines_of([sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--color=no"]):
        print(line, flush=True)
        last = line.strip() or last
    yield f"`pytest -m gpu`: {last}"
