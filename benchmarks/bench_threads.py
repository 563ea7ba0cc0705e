"""Training steps with free cores, and beside busy processes, with and without the project's `SpinGuard`.

Each setting trains in a process of its own (KCL, 16-px images, batch 64, no loader). The processes take turns, so that
noise meets all settings alike. A busy process computes without end; there are as many of them as cores. The floor of a
row is the fastest setting of the same turns: a ratio of 1.3 means that a setting takes 1.3 times as long. Each turn
starts with training that is not measured, in which the guard notices the busy processes; that takes it a second.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from statistics import median

import torch

from moco.builder import KCL
from moco.encoders import get_encoder
from utils.devices import usable_cores
from utils.openmp import SpinGuard

TURNS, SECONDS, BATCH = 3, 3.0, 64
UNMEASURED = 2.0  # seconds at the start of a turn
ARCHS = {"lenet": 16, "resnet18": 16}  # and pixels
HEADER = "| steps | beside | setting | images/s | floor | time ÷ floor |\n|---|---|---|--:|--:|--:|"


def train(arch: str) -> None:
    """Train for a turn after each line on stdin, and answer with its images per second."""
    pixels = ARCHS[arch]
    model = KCL(get_encoder(arch, pixels), 128, 1024, mlp=True, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    views, labels = torch.randn(2, BATCH, 3, pixels, pixels), torch.randint(0, 10, (BATCH,))

    def steps(seconds: float) -> float:
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            optimizer.zero_grad(set_to_none=True)
            model(*views, labels).loss.backward()
            optimizer.step()
            count += 1
        return count * BATCH / spent

    for _ in sys.stdin:
        steps(UNMEASURED)
        print(steps(SECONDS), flush=True)


# Environment variables of each setting. Any value of GOMP_SPINCOUNT switches the guard off; libgomp's own is 300,000.
SETTINGS = {
    "this project": {},
    "without the guard": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def measure(arch: str, busy: int) -> list[str]:
    """Return the rows of one network beside so many busy processes."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "benchmarks.bench_threads", "--train", arch]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {name: subprocess.Popen(command, env=plain | changes, **pipes) for name, changes in SETTINGS.items()}
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    try:
        ask_all(processes)  # the imports and the first steps
        for other in others:
            other.start()
        for _ in range(TURNS):
            for name, rate in ask_all(processes).items():
                rates[name].append(rate)
    finally:
        for process in (*processes.values(), *others):
            process.kill()
    middle = {name: median(values) for name, values in rates.items()}
    best = max(middle.values())
    beside = f"{busy} busy processes" if busy else "nothing"
    return [
        f"| {arch}, {ARCHS[arch]} px | {beside} | {name} | {rate:.0f} | {best:.0f} | {best / rate:.2f} |"
        for name, rate in middle.items()
    ]


def ask_all(processes: dict[str, subprocess.Popen]) -> dict[str, float]:
    """Let one process after the other train for a while; return images a second."""
    rates = {}
    for name, process in processes.items():
        process.stdin.write("\n")
        process.stdin.flush()
        rates[name] = float(process.stdout.readline())
    return rates


def spin() -> None:
    while True:
        pass


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        with SpinGuard():
            train(sys.argv[2])
        return
    if sys.argv[1:] == ["cuda"]:
        print("OpenMP threads compute on the CPU only; see the CPU section.")
        return
    print(HEADER)
    for busy in (0, usable_cores()):
        for arch in ARCHS:
            print("\n".join(measure(arch, busy)), flush=True)
    print(f"\nmedians of {TURNS} turns of {SECONDS:.0f} measured seconds each, {usable_cores()} cores")


if __name__ == "__main__":
    main()
