"""The trials of a plan: their commands, and which of them have ended."""

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
from utils.run.arguments import BEFORE, FREE, changed


class Trial(NamedTuple):
    """One run of a method and the comparison of heads on it.

    commands: what is to be run, in this order, each as words. weight: what it costs beside others, images to train on.
    """

    run_dir: Path
    commands: tuple[list[str], ...]
    weight: float = 1.0


class Cell(NamedTuple):
    """What the seeds of a group have in common. extra: flags of a sweep, or of the choice of the learning rate."""

    imbalance: float
    method: Method
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the run folder, before the seed."""
        return "_".join([self.method.key, *(word.lstrip("-").replace("-", "_") for word in self.extra)])

    def words(self, plan: Plan) -> list[str]:
        """The flags of its training that are the plan's."""
        way = self.method.way
        words = [*plan.flags[way]]
        if plan.epochs and way in VIEWS:
            words += ["--epochs", str(2 * plan.epochs[self.imbalance] // VIEWS[way])]
        return [*words, *self.method.flags, *self.extra]


class Common(NamedTuple):
    """What all trials of a study have in common. flags: of all commands, as of the device."""

    folder: Path
    flags: tuple[str, ...]


def trial_of(plan: Plan, cell: Cell, seed: int, common: Common, more: tuple[str, ...]) -> Trial:
    """more: flags of the training that are not the plan's: its learning rate, where its targets are."""
    run_dir, way = common.folder / f"rho{cell.imbalance:g}" / f"{cell.name}_s{seed}", cell.method.way
    data = [*plan.data, "--imbalance", f"{cell.imbalance:g}", *common.flags]
    data += ["--seed", str(seed), "--deterministic"] if way in VIEWS else []  # in pixels nothing is random
    train = [*shlex.split(SCRIPTS[way]), *cell.words(plan), *more, *data, "--run-dir", str(run_dir)]
    train += ["--resume", "auto"]
    if way == "pixels":
        return Trial(run_dir, (train,))
    heads = [HEADS, "--compare-heads", *plan.flags["heads"], *data, "--pretrained", str(run_dir / "last.pth.tar")]
    return Trial(run_dir, (train, [*heads, "--run-dir", str(run_dir / "heads")]))


def tuning_cells(plan: Plan) -> dict[Cell, str]:
    """Those that choose the learning rate -> the rate."""
    if len(plan.rates) < 2:
        return {}
    tuned = (method for method in plan.methods.values() if method.way in VIEWS)
    return {
        Cell(plan.tune_imbalance, method, ("--lr", rate)): rate for method, rate in itertools.product(tuned, plan.rates)
    }


def main_cells(plan: Plan) -> list[Cell]:
    return [Cell(imbalance, method) for imbalance in plan.imbalances for method in plan.methods.values()]


def sweep_cells(plan: Plan, sweep: Sweep) -> dict[tuple[str, str], Cell]:
    """(method key, value) -> its cell; where the value is the method's own, the method's cell."""
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
    """What is to be run: the first command that has not ended, and all behind it, which build on it.

    Raises InputError as `ended`.
    """
    done = [ended(command) for command in trial.commands]
    first = done.index(False) if False in done else len(done)
    return trial._replace(commands=trial.commands[first:])


def ended(command: list[str]) -> bool:
    """Whether the run of a command is there, with all its epochs.

    Raises:
        InputError: its folder holds a run that another command has made.
    """
    script, *flags = command[1:] if command[0] == "-m" else command
    asked = resolved(script, parser_named(script).parse_args(flags))
    folder = Path(asked.run_dir)
    if not (folder / "args.json").exists():
        return False
    stage = read_stage(folder)
    of_stage = heads.BEFORE if "pretrained" in stage.args else methods.BEFORE
    its = BEFORE | of_stage | options.before(asked) | stage.args  # what an older run does not say is as it was
    if found := changed(its, vars(asked), FREE - {"seed"}):
        listed = ", ".join(f"{name} {change}" for name, change in found.items())
        raise errors.InputError(
            f"{asked.run_dir}: made with other arguments ({listed}); name another --folder, or delete it"
        )
    written = stage.folder / ("features.npz" if getattr(asked, "monitor_freq", 0) else "results.json")
    trained = script in (SCRIPTS["contrast"], SCRIPTS["cross-entropy"].removeprefix("-m "))
    return written.exists() and (not trained or _epochs_done(folder / checkpoint.LAST) == asked.epochs)


def _epochs_done(path: Path) -> int:
    """Of a checkpoint; the log may be an epoch ahead of it."""
    return checkpoint.load(path, needs=("epoch", "state_dict"))["epoch"] if path.exists() else 0


def resolved(script: str, asked: Namespace) -> Namespace:
    """Arguments as a run keeps them: those that were left to others have their values."""
    options.fill_in(asked)
    if script == SCRIPTS["contrast"]:
        methods.method_of(asked).check()
    if script == HEADS:
        heads.settle(asked, 1)
    if script == SCRIPTS["pixels"].removeprefix("-m "):
        asked.arch = pixels.ARCH
    return asked
