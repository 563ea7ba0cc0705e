"""Run the tests that need a GPU."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.plan import NEEDS_CUDA, Plan

ROOT = Path(__file__).parent.parent.parent


def stream_lines(command: list[str]) -> Iterator[str]:
    """Run a command and yield its output lines. If the generator is closed, terminate the command.

    Raises:
        RuntimeError: The exit code is not 0.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield from (line.rstrip("\n") for line in process.stdout)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {process.returncode}")


def run_gpu_tests(plan: Plan, metrics: dict) -> Iterator[str]:
    """Run `pytest -m gpu` and print its output. Yield its last line for the page.

    Raises:
        RuntimeError: A test failed.
    """
    if plan.smoke_test:
        yield f"`pytest -m gpu`: {NEEDS_CUDA}"
        return
    last_line = ""
    for line in stream_lines([sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--color=no"]):
        print(line, flush=True)
        last_line = line.strip() or last_line
    yield f"`pytest -m gpu`: {last_line}"
