"""This project's own results: KCL, TSC and cross-entropy on long-tailed handwritten digits, five seeds each.

    python -m examples.results

The demo's recipe at imbalances 10, 50 and 100, cross-entropy networks of as many epochs, and all heads on each of them
(results_plan.py). As many runs at a time as there are cores, each on one. Writes docs/results.md and docs/results.png;
the runs stay in runs/results. Interrupted, the same command goes on where it was.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from examples.results_page import Groups, write_page
from examples.results_plan import MONITORED, Trial, cells, trial_of
from moco import methods
from moco.heads import flags as heads
from moco.targets.files import target_file_name
from moco.targets.generation import generate_file
from utils import errors
from utils.distributed import say
from utils.parser import Parser, positive_int
from utils.report.runs import Stage, read_stage
from utils.report.trials import group_of
from utils.run.arguments import BEFORE, FREE
from utils.run.launch import usable_cores


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
            f"--epochs {args.epochs}: expected a multiple of {MONITORED}: the last must be measured"
        )
    folder = Path(args.folder)
    plan = {cell: [trial_of(*cell, seed, args) for seed in range(args.seeds)] for cell in cells()}
    trials = [trial for of_one_seed in zip(*plan.values(), strict=True) for trial in of_one_seed]
    # What is left to do of each; raises if what is there is something else.
    left = [trial._replace(commands=tuple(c for c in trial.commands if not ended(c))) for trial in trials]
    waiting = [trial for trial in left if trial.commands]
    folder.mkdir(parents=True, exist_ok=True)
    if not (file := folder / target_file_name(10, 128)).exists():
        generate_file(file, 10, 128)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as Ctrl-C: through run_all, which takes its runs along
        signal.signal(number, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    run_all(waiting, args.jobs or usable_cores())
    groups: Groups = {
        (imbalance, method.title): group_of(method.title, [str(trial.run_dir) for trial in of_method])
        for (imbalance, method), of_method in plan.items()
    }
    command = shlex.join(["python", "-m", "examples.results", *(sys.argv[1:] if argv is None else argv)])
    page = write_page(groups, Path(args.output), command)
    say(f"wrote {page} and {page.with_suffix('.png').name}; the runs are in {folder}")


def ended(command: list[str]) -> bool:
    """Whether the run of a command is there, with all its epochs.

    Raises:
        InputError: its folder holds a run that another command has made.
    """
    script, *flags = command[1:] if command[0] == "-m" else command
    asked = import_module(script.removesuffix(".py")).get_args_parser().parse_args(flags)
    if not (Path(asked.run_dir) / "args.json").exists():
        return False
    stage = read_stage(Path(asked.run_dir))
    if changed := differences(vars(asked), stage):
        raise errors.InputError(
            f"{asked.run_dir}: made with other arguments ({', '.join(changed)}); name another --folder, or delete it"
        )
    last = stage.epochs[-1]["epoch"] if stage.epochs else 0
    trained = last == asked.epochs or getattr(asked, "compare_heads", False)
    return trained and (script == "main_moco_supcon_imba.py" or (stage.folder / "results.json").exists())


def differences(asked: dict, stage: Stage) -> list[str]:
    """`lr 0.1 -> 0.03` for each argument that was given, decides the result and is not the run's."""
    given = {name: value for name, value in asked.items() if value is not None and name not in FREE - {"seed"}}
    its = BEFORE | methods.BEFORE | heads.BEFORE | stage.args  # what an older run does not say is as it was
    return [f"{name} {its.get(name)} -> {v}" for name, v in given.items() if its.get(name) != v]


def run_all(trials: list[Trial], jobs: int) -> None:
    """Run them, so many at a time; whatever ends this, as an InputError of one, ends all, which save themselves."""
    waiting, running, started, finished = deque(trials), {}, time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.popleft()
                running[start(trial)] = trial
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                trial = running.pop(process)
                if process.returncode:
                    raise errors.InputError(
                        f"{trial.run_dir}: {why(process, trial)}; its output is in {output_of(trial)}"
                    )
                if rest := trial.commands[1:]:
                    waiting.appendleft(trial._replace(commands=rest))
                    continue
                finished += 1
                left = (time.monotonic() - started) / finished * (len(trials) - finished)
                say(f"[{finished:>3}/{len(trials)}] {trial.run_dir}  about {timedelta(seconds=round(left))} left")
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


def why(process: subprocess.Popen, trial: Trial) -> str:
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}"
    return (output_of(trial).read_text().splitlines() or ["ended without a word"])[-1]


if __name__ == "__main__":
    errors.run(main, "the same command goes on from here")
