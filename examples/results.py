"""This project's own results: KCL, TSC and cross-entropy on long-tailed handwritten digits, five seeds each.

    python -m examples.results

The demo's recipe at imbalances 10, 50 and 100, a cross-entropy network of as many epochs, and at 100 variants that
ask what a difference hangs on. As many runs at a time as there are cores, each on one. Writes docs/results.md and
docs/results.png; the runs stay in runs/results. Interrupted, the same command goes on where it was.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from examples import demo
from examples.results_page import write_page
from target_generation import generate_file
from utils import errors
from utils.arguments import Parser, positive_int
from utils.distributed import usable_cores
from utils.logger import say
from utils.trials import read_group

IMBALANCES, VARIED = (10, 50, 100), 100
ONE_CORE = "--imbalance {imbalance} -j 0"
PROBE_EPOCHS = 8  # of demo.STAGE_2: cross-entropy has them too
MONITORED = 4  # --monitor-freq of demo.STAGE_1
CROSS_ENTROPY = (
    "-m examples.cross_entropy --dataset digits --epochs {all_epochs} -b 64 --lr 0.1 --cos --seed {seed} -p 0 "
    "--resume auto --run-dir {run_dir}"
)


class Method(NamedTuple):
    """key: in the names of run folders. title: in tables. flags: of stage 1, None for cross-entropy."""

    key: str
    title: str
    flags: str | None


KCL, TSC = demo.METHODS["KCL"], demo.METHODS["TSC"]
LOW = "--moco-dim 3 --moco-t 0.2 --lr 0.01"  # at the demo's rate all features of few dimensions fall onto one point
METHODS = (Method("kcl", "KCL", KCL), Method("tsc", "TSC", TSC), Method("ce", "cross-entropy", None))
VARIANTS = (
    Method("kcl_3d", "KCL, D = 3", f"{KCL} {LOW}"),
    Method("tsc_3d", "TSC, D = 3", f"{TSC} {LOW} --targets {{folder}}/optimal_10_3.npy"),
    Method("tsc_tw1", "TSC, λ = 1", f"{TSC} --tw 1"),
    Method("tsc_queue", "TSC, centroids from the queue", f"{TSC} --centroid-init queue"),
    Method("kcl_k256", "KCL, queue of 256", f"{KCL} --moco-k 256"),
    Method("tsc_k256", "TSC, queue of 256", f"{TSC} --moco-k 256"),
)


class Trial(NamedTuple):
    """One seed of a method. commands: what is left to run of it, in this order, each as words."""

    run_dir: Path
    commands: tuple[list[str], ...]

    def done(self) -> bool:
        return any((self.run_dir / place / "results.json").exists() for place in ("", "probe"))


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=positive_int, default=5, help="0 to this minus one; two or more make a spread")
    parser.add_argument("--epochs", type=positive_int, default=32, help="of pre-training")
    parser.add_argument(
        "--jobs", type=positive_int, help="runs at a time; more than cores only slow each other (default: the cores)"
    )
    parser.add_argument("--folder", default="runs/results", help="where the runs go")
    parser.add_argument("--output", default="docs", help="where page and picture go")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.seeds < 2:
        raise errors.InputError(f"--seeds {args.seeds}: expected 2 or more, for there to be a spread")
    if args.epochs % MONITORED:
        raise errors.InputError(
            f"--epochs {args.epochs}: expected a multiple of {MONITORED}, so that the last is measured"
        )
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for dim in (128, 3):
        if not (file := folder / f"optimal_10_{dim}.npy").exists():
            generate_file(file, 10, dim)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through run_all, which takes its runs along
    waiting = [trial for seed in range(args.seeds) for trial in trials_of(seed, args) if not trial.done()]
    run_all(waiting, args.jobs or usable_cores())
    groups = {
        (imbalance, method.title): read_group(str(run_dir_of(folder, imbalance, method, "*")))
        for imbalance, method in cells()
    }
    check_finished_alike(groups, args)
    command = shlex.join(["python", "-m", "examples.results", *sys.argv[1:]])
    page = write_page(groups, VARIED, Path(args.output), command)
    say(f"wrote {page} and {page.with_suffix('.png').name}; the runs are in {folder}")


def cells() -> list[tuple[int, Method]]:
    """Imbalance and method of all that is run."""
    return [*((rho, method) for rho in IMBALANCES for method in METHODS), *((VARIED, method) for method in VARIANTS)]


def run_dir_of(folder: Path, imbalance: int, method: Method, seed: int | str) -> Path:
    return folder / f"rho{imbalance}" / f"{method.key}_s{seed}"


def trials_of(seed: int, args) -> list[Trial]:
    """One seed of everything."""
    trials = []
    for imbalance, method in cells():
        run_dir = run_dir_of(Path(args.folder), imbalance, method, seed)
        stages = [f"{demo.STAGE_1} {method.flags} --run-dir {{run_dir}}"]
        stages.append(f"{demo.STAGE_2} --pretrained {{run_dir}}/last.pth.tar --run-dir {{run_dir}}/probe")
        if method.flags is None:
            stages = [CROSS_ENTROPY]
        values = {"epochs": args.epochs, "all_epochs": args.epochs + PROBE_EPOCHS, "folder": args.folder}
        values |= {"imbalance": imbalance, "seed": seed, "run_dir": run_dir}
        words = (f"{stage} {ONE_CORE}".split() for stage in stages)
        trials.append(Trial(run_dir, tuple([word.format(**values) for word in command] for command in words)))
    return trials


def run_all(trials: list[Trial], jobs: int) -> None:
    """Run them, so many at a time; whatever ends this ends the runs too, which save themselves.

    Raises:
        InputError: one failed; where its output is.
    """
    waiting, running, total, started = deque(trials), {}, len(trials), time.monotonic()
    finished = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.popleft()
                running[start(trial)] = trial
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                trial = running.pop(process)
                if process.returncode:
                    raise errors.InputError(f"{trial.run_dir}: {last_line(output_of(trial))} ({output_of(trial)})")
                if rest := trial.commands[1:]:
                    waiting.appendleft(trial._replace(commands=rest))
                    continue
                finished += 1
                left = (time.monotonic() - started) / finished * (total - finished)
                say(f"[{finished:>3}/{total}] {trial.run_dir}  about {timedelta(seconds=round(left))} left")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def start(trial: Trial) -> subprocess.Popen:
    """The first of its commands, on one core, with its output in a file of the run folder."""
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    with output_of(trial).open("a") as file:
        command = [sys.executable, *trial.commands[0]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def output_of(trial: Trial) -> Path:
    return trial.run_dir / "output.txt"


def last_line(file: Path) -> str:
    return (file.read_text().splitlines() or ["it ended without a word"])[-1]


def check_finished_alike(groups: dict, args) -> None:
    """The runs that were there already are those that were asked for.

    Raises:
        InputError: they have another number of epochs or of seeds.
    """
    for (_, title), group in groups.items():
        epochs = args.epochs if group.runs[0].pretraining else args.epochs + PROBE_EPOCHS
        found = {(run.pretraining or run.probe).args["epochs"] for run in group.runs}
        if found != {epochs} or len(group.runs) != args.seeds:
            raise errors.InputError(
                f"{args.folder}: {title} has {len(group.runs)} runs of {found} epochs, expected {args.seeds} of "
                f"{epochs}; name another --folder, or delete it"
            )


if __name__ == "__main__":
    errors.run(main, "the same command goes on from here")
