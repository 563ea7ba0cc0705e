"""Run all benchmarks and write benchmarks/RESULTS.md: `make bench`, or `python -m benchmarks [bench_head ...]`.

Each benchmark runs on the CPU, and on the CUDA device if one exists. Results of named benchmarks are printed, but
not written.
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


def run(name: str, device: str) -> str:
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


def section(title: str, names: list[str], device: str) -> str:
    return f"## {title}\n\n" + "\n".join(f"`{name}.py`\n\n{run(name, device)}" for name in names)


def main() -> None:
    everything = sorted(path.stem for path in HERE.glob("bench_*.py"))
    names = sys.argv[1:] or everything
    if strangers := sorted(set(names) - set(everything)):
        sys.exit(f"error: no such benchmark: {', '.join(strangers)}; expected {', '.join(everything)}")
    head = f"# Benchmarks\n\n`make bench`, {date.today()}. The docstring of each script explains what it measures.\n\n"
    text = head + common.machine() + "\n\n" + section("CPU", names, "cpu")
    text += "\n" + (section("CUDA", names, "cuda") if torch.cuda.is_available() else f"## CUDA\n\n{NO_DEVICE}")
    if names == everything:
        results = HERE / "RESULTS.md"
        write_text(results, text)
        print(f"\nwrote {results.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
