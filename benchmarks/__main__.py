"""Run every benchmark and write benchmarks/RESULTS.md: `make bench`, or `python -m benchmarks [bench_head ...]`.

On the CPU, and again on the CUDA device if there is one. Named ones alone are printed, not written.
"""

import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from benchmarks import common
from utils.files import write_text

HERE = Path(__file__).parent
NO_DEVICE = "No CUDA device was at hand: nothing was measured on one.\n"


def run(name: str, device: str) -> str:
    """What a benchmark prints; it is shown while it runs."""
    print(f"\n{name} on {device}", flush=True)
    lines = []
    command = [sys.executable, "-m", f"benchmarks.{name}", device]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"error: {name} on {device} ended with {process.returncode}; RESULTS.md stays as it was")
    return "".join(lines)


def section(title: str, names: list[str], device: str) -> str:
    return f"## {title}\n\n" + "\n".join(f"`{name}.py`\n\n{run(name, device)}" for name in names)


def main() -> None:
    everything = sorted(path.stem for path in HERE.glob("bench_*.py"))
    names = sys.argv[1:] or everything
    if strangers := sorted(set(names) - set(everything)):
        sys.exit(f"error: no benchmark {', '.join(strangers)}; there are {', '.join(everything)}")
    head = f"# Benchmarks\n\n`make bench`, {date.today()}. What each script measures stands at its top.\n\n"
    text = head + common.machine() + "\n\n" + section("CPU", names, "cpu")
    text += "\n" + (section("CUDA", names, "cuda") if torch.cuda.is_available() else f"## CUDA\n\n{NO_DEVICE}")
    if names == everything:
        results = HERE / "RESULTS.md"
        write_text(results, text)
        print(f"\nwrote {results.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
