"""Measure training steps on free cores and next to busy processes, with and without the project's `SpinGuard`.

Each setting trains in its own process (KCL, 16 px images, batch 64, no loader). The processes take turns, so that noise
on the machine affects all settings equally. A busy process runs an endless loop; there is one per core. The floor of a
row is the fastest setting in the same turns: a ratio of 1.3 means that a setting takes 1.3 times as long. Each turn
starts with training that is not timed, because the guard needs about a second to detect the busy processes.
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
WARMUP_SECONDS = 2.0  # at the start of a turn, not timed
ARCHS = {"lenet": 16, "resnet18": 16}  # encoder -> image size in pixels
HEADER = "| encoder | other processes | setting | images/s | floor | time ÷ floor |\n|---|---|---|--:|--:|--:|"


def train(arch: str) -> None:
    """Train for one turn after each line on stdin, and print its images per second."""
    pixels = ARCHS[arch]
    model = KCL(get_encoder(arch, pixels), 128, 1024, mlp=True, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    views, labels = torch.randn(2, BATCH, 3, pixels, pixels), torch.randint(0, 10, (BATCH,))

    def run_steps(seconds: float) -> float:
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            optimizer.zero_grad(set_to_none=True)
            model(*views, labels).loss.backward()
            optimizer.step()
            count += 1
        return count * BATCH / elapsed

    for _ in sys.stdin:
        run_steps(WARMUP_SECONDS)
        print(run_steps(SECONDS), flush=True)


# Environment variables of each setting. Any value of GOMP_SPINCOUNT disables the guard. libgomp's default is 300,000.
SETTINGS = {
    "this project": {},
    "without the guard": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def measure(arch: str, num_busy: int) -> list[str]:
    """Return the table rows of one encoder, measured next to `num_busy` busy processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "benchmarks.bench_threads", "--train", arch]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {
        name: subprocess.Popen(command, env=environment | variables, **pipes) for name, variables in SETTINGS.items()
    }
    busy_processes = [multiprocessing.Process(target=busy_loop, daemon=True) for _ in range(num_busy)]
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    try:
        measure_rates(processes)  # not recorded: imports and first steps
        for process in busy_processes:
            process.start()
        for _ in range(TURNS):
            for name, rate in measure_rates(processes).items():
                rates[name].append(rate)
    finally:
        for process in (*processes.values(), *busy_processes):
            process.kill()
    medians = {name: median(values) for name, values in rates.items()}
    best = max(medians.values())
    load = f"{num_busy} busy processes" if num_busy else "none"
    return [
        f"| {arch}, {ARCHS[arch]} px | {load} | {name} | {rate:.0f} | {best:.0f} | {best / rate:.2f} |"
        for name, rate in medians.items()
    ]


def measure_rates(processes: dict[str, subprocess.Popen]) -> dict[str, float]:
    """Let each process train for one turn, one after the other. Return setting -> images per second."""
    rates = {}
    for name, process in processes.items():
        process.stdin.write("\n")
        process.stdin.flush()
        rates[name] = float(process.stdout.readline())
    return rates


def busy_loop() -> None:
    while True:
        pass


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        with SpinGuard():
            train(sys.argv[2])
        return
    if sys.argv[1:] == ["cuda"]:
        print("OpenMP threads are used on the CPU only; see the CPU section.")
        return
    print(HEADER)
    for num_busy in (0, usable_cores()):
        for arch in ARCHS:
            print("\n".join(measure(arch, num_busy)), flush=True)
    print(f"\nMedians over {TURNS} turns of {SECONDS:.0f} measured seconds each, {usable_cores()} cores.")


if __name__ == "__main__":
    main()
