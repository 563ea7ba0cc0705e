"""Run all benchmarks and write benchmarks/RESULTS.md: `make bench`, or `python -m benchmarks [bench_head ...]`.

Each benchmark runs on the CPU, and on the CUDA device if one exists. If benchmarks are named, their results are
printed, and RESULTS.md is not changed.
"""

import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from benchmarks import common
from utils.files import write_text

HERE = Path(__file__).parent
NO_DEVICE = "Not measured, because no CUDA device was available.\n"


def run_benchmark(name: str, device: str) -> str:
    """Run a benchmark, print its output and return it."""
    print(f"\n{name} on {device}", flush=True)
    lines = []
    command = [sys.executable, "-m", f"benchmarks.{name}", device]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"error: {name} on {device} ended with exit code {process.returncode}; RESULTS.md was not changed")
    return "".join(lines)


def run_section(title: str, names: list[str], device: str) -> str:
    """Run benchmarks on a device. Return the section of RESULTS.md with their output."""
    return f"## {title}\n\n" + "\n".join(f"`{name}.py`\n\n{run_benchmark(name, device)}" for name in names)


def main() -> None:
    all_names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    names = sys.argv[1:] or all_names
    if unknown := sorted(set(names) - set(all_names)):
        sys.exit(f"error: no such benchmark: {', '.join(unknown)}; expected {', '.join(all_names)}")
    heading = (
        f"# Benchmarks\n\n`make bench`, {date.today()}. The docstring of each script explains what it measures.\n\n"
    )
    text = heading + common.describe_machine() + "\n\n" + run_section("CPU", names, "cpu")
    text += "\n" + (run_section("CUDA", names, "cuda") if torch.cuda.is_available() else f"## CUDA\n\n{NO_DEVICE}")
    if names == all_names:
        results = HERE / "RESULTS.md"
        write_text(results, text)
        print(f"\nwrote {results.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
