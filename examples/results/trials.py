"""The trials of a plan: their commands, and which of them have finished."""

import itertools
import shlex
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from examples import pixels
from examples.results.plan import HEADS, SCRIPTS, VIEWS, Method, Plan, Sweep, parser_named, parser_of
from imagenet_inat import options
from moco import methods
from moco.heads import flags as heads
from utils import errors
from utils.report.runs import read_stage
from utils.run import checkpoint
from utils.run.arguments import FREE, LEGACY_DEFAULTS, changed


class Trial(NamedTuple):
    """One run of a method, and the comparison of heads on it.

    Attributes:
        commands: Commands to run in this order, each as a list of words.
        weight: Cost relative to other trials, as a number of views to train on.
    """

    run_dir: Path
    commands: tuple[list[str], ...]
    weight: float = 1.0


class Cell(NamedTuple):
    """A group of trials that differ only in the seed.

    extra: Flags of a sweep, or of the selection of the learning rate.
    """

    imbalance: float
    method: Method
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the run folder, without the seed."""
        return "_".join([self.method.key, *(word.lstrip("-").replace("-", "_") for word in self.extra)])

    def words(self, plan: Plan) -> list[str]:
        """Return the training flags that come from the plan."""
        way = self.method.way
        words = [*plan.flags[way]]
        if plan.epochs and way in VIEWS:
            words += ["--epochs", str(2 * plan.epochs[self.imbalance] // VIEWS[way])]
        return [*words, *self.method.flags, *self.extra]


class Common(NamedTuple):
    """Settings of all trials of a study: folder of the runs, and flags of all commands, such as --device."""

    folder: Path
    flags: tuple[str, ...]


def trial_of(plan: Plan, cell: Cell, seed: int, common: Common, more: tuple[str, ...]) -> Trial:
    """Build the trial of a cell and a seed. more: training flags that are not in the plan (learning rate, targets)."""
    run_dir, way = common.folder / f"rho{cell.imbalance:g}" / f"{cell.name}_s{seed}", cell.method.way
    data = [*plan.data, "--imbalance", f"{cell.imbalance:g}", *common.flags]
    data += ["--seed", str(seed), "--deterministic"] if way in VIEWS else []  # pixels involve no randomness
    train = [*shlex.split(SCRIPTS[way]), *cell.words(plan), *more, *data, "--run-dir", str(run_dir)]
    train += ["--resume", "auto"]
    if way == "pixels":
        return Trial(run_dir, (train,))
    heads = [HEADS, "--compare-heads", *plan.flags["heads"], *data, "--pretrained", str(run_dir / "last.pth.tar")]
    return Trial(run_dir, (train, [*heads, "--run-dir", str(run_dir / "heads")]))


def tuning_cells(plan: Plan) -> dict[Cell, str]:
    """Return the cells for the selection of learning rates, each with its rate."""
    if len(plan.rates) < 2:
        return {}
    tuned = (method for method in plan.methods.values() if method.way in VIEWS)
    return {
        Cell(plan.tune_imbalance, method, ("--lr", rate)): rate for method, rate in itertools.product(tuned, plan.rates)
    }


def main_cells(plan: Plan) -> list[Cell]:
    return [Cell(imbalance, method) for imbalance in plan.imbalances for method in plan.methods.values()]


def sweep_cells(plan: Plan, sweep: Sweep) -> dict[tuple[str, str], Cell]:
    """Return (method key, value) -> cell. If the value is the method's own, this is the method's main cell."""
    found = {}
    for key, value in itertools.product(sweep.methods, sweep.values):
        method = plan.methods[key]
        words = tuple(shlex.split(f"{sweep.flag} {value}"))
        cell = Cell(sweep.imbalance, method)
        found[key, value] = cell if _changes_nothing(plan, cell, words) else cell._replace(extra=words)
    return found


def _changes_nothing(plan: Plan, cell: Cell, words: tuple[str, ...]) -> bool:
    parser, flags = parser_of(cell.method.way), cell.words(plan)
    return parser.parse_args(flags) == parser.parse_args([*flags, *words])


def left_of(trial: Trial) -> Trial:
    """Return the trial with its remaining commands: the first unfinished one and all after it, which depend on it.

    Raises:
        InputError: See `ended`.
    """
    done = [ended(command) for command in trial.commands]
    first = done.index(False) if False in done else len(done)
    return trial._replace(commands=trial.commands[first:])


def ended(command: list[str]) -> bool:
    """Return whether the run of a command has finished all its epochs.

    Raises:
        InputError: The folder contains a run with other arguments.
    """
    script, *flags = command[1:] if command[0] == "-m" else command
    asked = resolved(script, parser_named(script).parse_args(flags))
    folder = Path(asked.run_dir)
    if not (folder / "args.json").exists():
        return False
    stage = read_stage(folder)
    of_stage = heads.LEGACY_DEFAULTS if "pretrained" in stage.args else methods.LEGACY_DEFAULTS
    its = LEGACY_DEFAULTS | of_stage | options.before(asked) | stage.args  # older runs lack newer arguments
    if found := changed(its, vars(asked), FREE - {"seed"}):
        listed = ", ".join(f"{name} {change}" for name, change in found.items())
        raise errors.InputError(
            f"{asked.run_dir}: made with other arguments ({listed}). Choose another --folder, or delete it"
        )
    written = stage.folder / ("features.npz" if getattr(asked, "monitor_freq", 0) else "results.json")
    trained = script in (SCRIPTS["contrast"], SCRIPTS["cross-entropy"].removeprefix("-m "))
    return written.exists() and (not trained or _epochs_done(folder / checkpoint.LAST) == asked.epochs)


def _epochs_done(path: Path) -> int:
    """Return the epochs of a checkpoint. The log is not used, because it may be one epoch ahead."""
    return checkpoint.load(path, needs=("epoch", "state_dict"))["epoch"] if path.exists() else 0


def resolved(script: str, asked: Namespace) -> Namespace:
    """Return the arguments as a run stores them, with all defaults resolved."""
    options.resolve_defaults(asked)
    if script == SCRIPTS["contrast"]:
        methods.method_of(asked).check()
    if script == HEADS:
        heads.settle(asked, 1)
    if script == SCRIPTS["pixels"].removeprefix("-m "):
        asked.arch = pixels.ARCH
    return asked
