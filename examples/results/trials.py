"""The trials of a plan: their commands, whether they have finished, and the time that remains."""

import itertools
import shlex
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from examples import pixels
from examples.results.plan import (
    HEADS,
    SCRIPTS,
    TRAINS_NETWORK,
    Plan,
    StudyMethod,
    Sweep,
    script_parser,
    sets_rate,
    stage1_parser,
    views_per_epoch,
)
from imagenet_inat import options
from moco import methods
from moco.heads import head_flags as heads
from utils import errors
from utils.cli.flags import describe_arguments
from utils.report.runs import read_stage
from utils.run import checkpoint


class Trial(NamedTuple):
    """One run of a method, followed by the comparison of heads on its features.

    Attributes:
        commands: Commands to run in this order, each as a list of arguments.
        weight: Cost relative to other trials, as the number of views to train on.
    """

    run_dir: Path
    commands: tuple[list[str], ...]
    weight: float = 1.0


class Cell(NamedTuple):
    """A group of trials that differ only in the seed.

    Attributes:
        extra: Flags of a sweep, or of the selection of the learning rate.
        length: Epochs of contrastive training, if the plan has lengths.
    """

    imbalance: float
    method: StudyMethod
    extra: tuple[str, ...] = ()
    length: int | None = None

    @property
    def name(self) -> str:
        """Name of the run folder, without the seed."""
        length = [f"{self.length}_epochs"] if self.length else []
        extra = (word.lstrip("-").replace("-", "_").replace("/", "_") for word in self.extra)
        return "_".join([self.method.key, *length, *extra])

    def train_flags(self, plan: Plan) -> list[str]:
        """Return the training flags that the plan sets."""
        stage1, epochs = self.method.stage1, self.length or plan.epochs.get(self.imbalance)
        flags, own_flags = [*plan.flags[stage1]], [*self.method.flags, *self.extra]
        if epochs and stage1 in TRAINS_NETWORK:
            views = views_per_epoch(vars(stage1_parser(stage1).parse_args([*flags, *own_flags])))
            flags += ["--epochs", str(round(2 * epochs / views))]
        return [*flags, *own_flags]


class StudySettings(NamedTuple):
    """Settings of all trials of a study.

    Attributes:
        folder: Folder for the runs.
        flags: Flags of all commands, such as --device.
    """

    folder: Path
    flags: tuple[str, ...]


def build_trial(plan: Plan, cell: Cell, seed: int, settings: StudySettings, extra_flags: tuple[str, ...]) -> Trial:
    """Build the trial of a cell and a seed.

    Args:
        extra_flags: Training flags that are not in the plan, such as the selected learning rate and the targets.
    """
    run_dir, stage1 = settings.folder / f"rho{cell.imbalance:g}" / f"{cell.name}_s{seed}", cell.method.stage1
    data_flags = [*plan.data, "--imbalance", f"{cell.imbalance:g}", *settings.flags]
    data_flags += (
        ["--seed", str(seed), "--deterministic"] if stage1 in TRAINS_NETWORK else []
    )  # pixels use no random numbers
    data_flags += ["--split-seed", str(seed)] if plan.split_per_seed else []
    train_command = [
        *shlex.split(SCRIPTS[stage1]),
        *cell.train_flags(plan),
        *extra_flags,
        *data_flags,
        "--run-dir",
        str(run_dir),
    ]
    train_command += ["--resume", "auto"]
    if stage1 == "pixels":
        return Trial(run_dir, (train_command,))
    heads = [HEADS, "--compare-heads", *plan.flags["heads"], *data_flags, "--pretrained", str(run_dir / "last.pth.tar")]
    heads += ["--run-dir", str(run_dir / "heads"), "--resume", "auto"]  # if the training is repeated, so is the fit
    return Trial(run_dir, (train_command, heads))


def tuning_cells(plan: Plan, length: int | None = None) -> dict[Cell, str]:
    """Return cell -> learning rate, for the selection of learning rates at a length. Empty if none are selected."""
    if len(plan.rates) < 2 or plan.tuned_length(length) != length:
        return {}
    trained = (method for method in plan.methods_at(length) if method.stage1 in TRAINS_NETWORK)
    tuned = (method for method in trained if not sets_rate(method))
    return {
        Cell(plan.tune_imbalance, method, ("--lr", rate), length): rate
        for method, rate in itertools.product(tuned, plan.rates)
    }


def main_cells(plan: Plan, length: int | None = None) -> list[Cell]:
    """Return one cell per imbalance and method that is trained at a length. Pixels are at all lengths."""
    return [
        Cell(imbalance, method, length=_cell_length(method, length))
        for imbalance in plan.imbalances
        for method in plan.methods_at(length)
    ]


def _cell_length(method: StudyMethod, length: int | None) -> int | None:
    return length if method.stage1 in TRAINS_NETWORK else None  # pixels are not trained


def sweep_cells(plan: Plan, sweep: Sweep) -> dict[tuple[str, str], Cell]:
    """Return (method key, value) -> cell. If the method already has the value, the cell is its main cell."""
    cells = {}
    for key, value in itertools.product(sweep.methods, sweep.values):
        method = plan.methods[key]
        extra = tuple(shlex.split(f"{sweep.flag} {value}"))
        cell = Cell(sweep.imbalance, method, length=_cell_length(method, sweep.length))
        cells[key, value] = cell if _has_value(plan, cell, extra) else cell._replace(extra=extra)
    return cells


def _has_value(plan: Plan, cell: Cell, extra: tuple[str, ...]) -> bool:
    """Return whether additional flags do not change the arguments of a cell."""
    if plan.rates and sets_rate(cell.method, extra) and not sets_rate(cell.method):
        return False  # the method has the plan's rate
    parser, flags = stage1_parser(cell.method.stage1), cell.train_flags(plan)
    return parser.parse_args(flags) == parser.parse_args([*flags, *extra])


def unfinished_part(trial: Trial) -> Trial:
    """Return the trial with only the first unfinished command and all commands after it, which depend on it.

    A trial with all its results has no unfinished part, also if its checkpoint was deleted or is not in an archive.

    Raises:
        InputError: See `is_finished`.
    """
    if is_complete(trial.run_dir) and not (trial.run_dir / checkpoint.LAST).exists():
        is_finished(trial.commands[0])  # checks the arguments
        return trial._replace(commands=())
    finished = [is_finished(command) for command in trial.commands]
    first_unfinished = finished.index(False) if False in finished else len(finished)
    return trial._replace(commands=trial.commands[first_unfinished:])


def is_complete(run_dir: Path) -> bool:
    """Return whether the classifiers of a trial have been compared, which is its last step."""
    return (run_dir / "heads" / "results.json").exists()


def is_finished(command: list[str]) -> bool:
    """Return whether the run of a command has finished all its epochs.

    Raises:
        InputError: The folder contains a run with other arguments.
    """
    script, *flags = command[1:] if command[0] == "-m" else command
    args = script_parser(script).parse_args(flags)
    folder = Path(args.run_dir)
    if not (folder / "args.json").exists():
        return False
    stage = read_stage(folder)
    args = resolve_args(script, args, stage.args)
    arguments = describe_arguments(script_parser(script), args)
    arguments = arguments._replace(free=arguments.free - {"seed"})  # the runs of a study differ in the seed
    if changes := arguments.changes_since(stage.args):
        differences = ", ".join(f"{name} {change}" for name, change in changes.items())
        raise errors.InputError(
            f"{args.run_dir}: contains a run with other arguments ({differences}). Choose another --folder or delete it"
        )
    output = "results.json"
    if script == SCRIPTS["contrast"]:  # without --monitor-freq, its last output is the checkpoint
        output = "features.npz" if args.monitor_freq else checkpoint.LAST
    trains = script in (SCRIPTS["contrast"], SCRIPTS["cross-entropy"].removeprefix("-m "))
    return (stage.folder / output).exists() and (not trains or _epochs_done(folder / checkpoint.LAST) == args.epochs)


def _epochs_done(path: Path) -> int:
    """Return the number of epochs of a checkpoint. The log is not used, because it can be one epoch ahead."""
    return checkpoint.read_checkpoint(path, needs=("epoch", "state_dict"))["epoch"] if path.exists() else 0


def resolve_args(script: str, args: Namespace, stored: dict[str, object]) -> Namespace:
    """Resolve all defaults, so that the arguments are those that a run stores. Return the arguments.

    Args:
        stored: Arguments stored in the run folder, with decisions that depend on the images; {} for a new run.
    """
    args.device_aug = options.kept_device_aug(args.device_aug, stored)
    vars(args).update(vars(options.DataFlags.from_args(args).resolved()))
    if script == SCRIPTS["contrast"]:
        method = methods.build_method(vars(args))
        method.check()
        args.loss_form = method.settings.loss_form
    if script == HEADS:
        vars(args).update(vars(heads.HeadFlags.from_args(args).resolved(processes=1)))
    if script == SCRIPTS["pixels"].removeprefix("-m "):
        args.arch = pixels.ARCH
    return args


class TimeEstimate:
    """Estimate of the remaining time, from the weights of the trials that have finished so far."""

    def __init__(self, trials: list[Trial], now: Callable[[], float] = time.monotonic):
        self.now, self.started, self.done = now, now(), 0
        self.total_weight, self.weight = sum(trial.weight for trial in trials), 0.0

    def add_finished(self, trial: Trial) -> None:
        self.done, self.weight = self.done + 1, self.weight + trial.weight

    def remaining(self) -> str:
        seconds = (self.now() - self.started) / self.weight * (self.total_weight - self.weight)
        return f"about {timedelta(seconds=round(seconds))} remaining in this stage"
