"""Breaks runs on purpose: kills them at random moments, feeds them damaged files.

    python -m tests.faults --kills 20                 # both stages, one process
    python -m tests.faults --kills 20 --processes 2   # the same under torchrun
    python -m tests.faults --splits 500 --checkpoints 100

A killed run is sent again with the same command until it is done; its weights must then equal,
bit for bit, those of a run that nothing disturbed. A damaged file must train or be refused in one
line, with nothing changed on the disk. Linux only: it finds processes in /proc.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from moco.targets.generation import generate_file
from tests import ROOT
from utils.run import checkpoint

COMMON = "--dataset digits --image-size 8 -b 256 -j 0 -p 1 --seed 5 --device cpu --resume auto --save-steps 1"
STAGE_1 = f"main_moco_supcon_imba.py {COMMON} --moco-k 512 --moco-dim 16 --lr 0.1 --epochs 4 --targeted --sep_t -s 2"
STAGE_2 = f"main_lincls_imba.py {COMMON} --lr 1 --epochs 3"


def stage_commands(folder: Path, data: Path, processes: int) -> list[list[str]]:
    """The command lines of both stages, which write to folder/run and folder/probe."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    files = f"--data-root {data} --targets {data / 'optimal_10_16.npy'} --run-dir {folder / 'run'}"
    probe = f"--data-root {data} --pretrained {folder / 'run' / checkpoint.LAST} --run-dir {folder / 'probe'}"
    return [[*launcher, *f"{STAGE_1} {files}".split()], [*launcher, *f"{STAGE_2} {probe}".split()]]


def start(command: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment, start_new_session=True)


def descendants(pid: int) -> list[int]:
    """The process and all it has started, from /proc."""
    parent_of = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_of[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue  # gone meanwhile
    family = [pid]
    for member in family:
        family += [child for child, parent in parent_of.items() if parent == member]
    return family


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for the process and everything below it, at once."""
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def wait_for_moment(process: subprocess.Popen, folder: Path, log: Path, rng: random.Random) -> bool:
    """Wait for a random moment of the run: its start, between two steps, or a write; False if it ended before."""
    kind = rng.choice(["start", "step", "step", "write", "write"])
    seen, begun, pause = log.stat().st_size, time.monotonic(), rng.uniform(0, 0.5)
    while process.poll() is None:
        new = log.stat().st_size > seen
        writing = new and any(folder.glob("*/.*draft*"))
        if kind == "start" and time.monotonic() - begun > 3 * pause:
            return True
        if kind == "write" and writing:
            return True
        if kind == "step" and new:
            time.sleep(pause)
            return process.poll() is None
        time.sleep(0.0005)
    return False


def run_undisturbed(commands: list[list[str]], log: Path) -> None:
    for command in commands:
        process = start(command, log)
        if process.wait():
            sys.exit(f"the undisturbed run has failed:\n{log.read_text()[-3000:]}")


def same_weights(one: Path, other: Path) -> bool:
    """Whether both stages' last checkpoints hold the same bits."""
    for stage in ("run", "probe"):
        a, b = (checkpoint.load(folder / stage / checkpoint.LAST) for folder in (one, other))
        weights = (a["state_dict"], b["state_dict"])
        if weights[0].keys() != weights[1].keys() or not all(
            torch.equal(weights[0][k], weights[1][k]) for k in weights[0]
        ):
            return False
    return True


def kills(number: int, processes: int, seed: int) -> bool:
    """Kill `number` times, print the outcome, return whether nothing was lost."""
    rng, done, lost, equal = random.Random(seed), 0, 0, True
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        data, log = base / "data", base / "log"
        whole = base / "whole"
        data.mkdir()
        generate_file(data / "optimal_10_16.npy", 10, 16)
        run_undisturbed(stage_commands(whole, data, processes), log)
        while done < number:
            folder = base / "killed"
            for command in stage_commands(folder, data, processes):
                while True:
                    process = start(command, log)
                    if done < number and wait_for_moment(process, folder, log, rng):
                        kill_all(process)
                        done += 1
                        print(f"\rkill {done}/{number}", end="", file=sys.stderr, flush=True)
                        continue
                    if process.wait():  # a start after a kill that does not go on
                        lost += 1
                        print(f"\nlost:\n{log.read_text()[-2000:]}", file=sys.stderr)
                    break
            equal = equal and not lost and same_weights(folder, whole)
            shutil.rmtree(folder)
    print(f"\n{done} kills, {lost} lost, equal: {equal}")
    return equal and not lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs at random moments of both stages")
    parser.add_argument("--processes", type=int, default=1, help="of the killed runs; more than one under torchrun")
    parser.add_argument("--splits", type=int, default=0, help="damaged split lists")
    parser.add_argument("--checkpoints", type=int, default=0, help="damaged checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    good = True
    if args.kills:
        good &= kills(args.kills, args.processes, args.seed)
    if args.splits or args.checkpoints:
        from tests import fuzz

        good &= fuzz.fuzz(args.splits, args.checkpoints, args.seed)
    sys.exit(not good)


if __name__ == "__main__":
    main()
