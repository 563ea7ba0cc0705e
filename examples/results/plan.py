"""The plan of a study: data, methods, seeds, sweeps and their flags; and whether its runs can be started."""

import argparse
import itertools
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from imagenet_inat.datasets import default_imbalances, get_spec
from imagenet_inat.paths import ListFlags, resolve_imbalance, resolve_largest, resolve_split_seed
from moco.methods import METHODS
from utils.cli.parser import Parser, refuse_unsupported, typed_names
from utils.errors import InputError

PLANS_DIR = Path(__file__).parent
SCRIPTS = {  # value of stage1 (how a method computes features) -> its script
    "contrast": "main_moco_supcon_imba.py",
    "cross-entropy": "-m examples.cross_entropy",
    "pixels": "-m examples.pixels",
}
HEADS = "main_lincls_imba.py"
# Arguments of each run, which the study sets.
SET_BY_STUDY = {"imbalance", "seed", "run_dir", "resume", "pretrained", "targets", "dry_run"}
TRAINS_NETWORK = ("contrast", "cross-entropy")  # values of stage1 that train a network


class StudyMethod(NamedTuple):
    """A method of a study.

    Attributes:
        key: Name in run folders.
        title: Name in tables.
        stage1: How it computes features, a key of SCRIPTS.
        flags: Flags that only this method has.
        longest: The longest of the plan's lengths at which it is trained. None: all lengths.
    """

    key: str
    title: str
    stage1: str
    flags: tuple[str, ...]
    longest: int | None = None


class Sweep(NamedTuple):
    """Runs that vary one flag of some methods, at one imbalance.

    Attributes:
        values: Values of the flag, as typed.
        axis, labels, caption: Axis label, tick labels and caption of its figure.
        length: One of the plan's lengths, if it has lengths.
    """

    key: str
    methods: tuple[str, ...]
    flag: str
    values: tuple[str, ...]
    imbalance: float
    seeds: int
    axis: str
    labels: tuple[str, ...]
    caption: str
    length: int | None = None


class Plan(NamedTuple):
    """The content of a plan file.

    Attributes:
        page: Name of the page, without .md.
        same: Description of what all methods have in common, printed on the page.
        epochs: Imbalance -> epochs of a method with two views of each image per epoch, or empty if the flags set them.
            Methods with more or fewer views train for fewer or more epochs, so that all see the same number of views.
        lengths: Maps each number of epochs, in ascending order, to the number of seeds. Each length has runs of its
            own, of all methods that are trained that long. Empty if all runs of an imbalance have the same length.
        data: Flags of all commands.
        flags: Value of stage1, or "heads" -> flags of its script.
        seeds: Number of seeds. With lengths, that of the longest.
        rates: Learning rates to select from. Each has one run per length, with tune_seed at tune_imbalance.
        longest_tuned: The longest of the lengths at which rates are selected; longer runs use the rate of this length.
        pairs: Keys of two methods to compare, the first minus the second.
        more_seeds: Number of seeds of the first pair if its difference is unresolved.
        resolved: A difference is unresolved if its interval contains 0 and is wider than ± this many points.
        split_per_seed: Whether each seed also selects its own images (--split-seed).
    """

    name: str
    title: str
    page: str
    same: str
    imbalances: tuple[float, ...]
    epochs: dict[float, int]
    lengths: dict[int, int]
    seeds: int
    more_seeds: int
    resolved: float
    data: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
    rates: tuple[str, ...]
    longest_tuned: int | None
    tune_imbalance: float
    tune_seed: int
    methods: dict[str, StudyMethod]
    pairs: tuple[tuple[str, str], ...]
    sweeps: tuple[Sweep, ...]
    split_per_seed: bool

    @property
    def length(self) -> int | None:
        """The longest length, or None without lengths."""
        return max(self.lengths, default=None)

    def methods_at(self, length: int | None) -> list[StudyMethod]:
        """Return the methods that are trained at a length. Without lengths, all."""
        return [method for method in self.methods.values() if not length or length <= (method.longest or length)]

    def tuned_length(self, length: int | None) -> int | None:
        """Return the length at which the learning rates of a length are selected."""
        return length if length is None else min(length, self.longest_tuned or length)

    def with_lengths(self, lengths: dict[int, int]) -> "Plan":
        """Return the plan with other lengths and numbers of seeds."""
        seeds = lengths[max(lengths)]
        return self._replace(lengths=lengths, seeds=seeds, more_seeds=max(seeds, self.more_seeds))


def stage1_parser(stage1: str) -> Parser:
    """Return the parser of the script for a value of stage1."""
    return script_parser(SCRIPTS[stage1].removeprefix("-m "))


def sets_rate(method: StudyMethod, extra: tuple[str, ...] = ()) -> bool:
    """Return whether a method's flags, or additional ones, set the learning rate, so that plan.rates are not used."""
    return "lr" in typed_names(stage1_parser(method.stage1), [*method.flags, *extra])


def views_per_epoch(args: dict) -> int:
    """Return the number of views of each image that an epoch uses, from the arguments of a training."""
    return METHODS[args["contrast"]].load().num_views if "contrast" in args else 1


@cache
def script_parser(script: str) -> Parser:
    """Return the parser of a script or module, such as "main_lincls_imba.py"."""
    return import_module(script.removesuffix(".py")).get_args_parser()


def parse_flags(path: Path, section: str, script: str, words: tuple[str, ...]) -> argparse.Namespace:
    """Parse flags as a script does. Raise InputError if the script refuses them, or if the study itself sets one."""
    parser = script_parser(script.removeprefix("-m "))

    def raise_error(message: str):
        raise InputError(f"plan {path}, [{section}]: {message}")

    parser.error = raise_error
    try:
        args = parser.parse_args(list(words))
        refuse_unsupported(parser, list(words), args)
    except SystemExit:
        raise_error("--help: prints text instead of running; omit it")
    finally:
        del parser.error  # restore the method of the class
    for name in typed_names(parser, list(words)) & SET_BY_STUDY:
        raise_error(f"--{name.replace('_', '-')}: is set by the study for each run; omit it")
    return args


def check_plan(path: Path, plan: Plan) -> None:
    """Raise InputError if a method or a value of stage1 is unknown, or if a script does not accept its flags."""
    if not any(method.stage1 != "pixels" for method in plan.methods.values()):
        raise InputError(f"plan {path}: no section [method KEY] that trains a network")
    for method in plan.methods.values():
        if method.stage1 not in SCRIPTS:
            raise InputError(
                f"plan {path}, [method {method.key}]: stage1 {method.stage1}, expected {', '.join(SCRIPTS)}"
            )
        _check_flags(path, plan, f"method {method.key}", method)
    parse_flags(path, "study", HEADS, (*plan.flags["heads"], *plan.data))
    _check_data(path, plan)
    method_uses = [("study", key) for pair in plan.pairs for key in pair]
    method_uses += [(f"sweep {sweep.key}", key) for sweep in plan.sweeps for key in sweep.methods]
    for section, key in method_uses:
        if key not in plan.methods:
            known = ", ".join(plan.methods)
            raise InputError(f"plan {path}, [{section}]: unknown method {key}, expected one of {known}")
    for pair in plan.pairs:
        if len(pair) != 2:
            raise InputError(f"plan {path}, [study]: pair {pair[0]}, expected METHOD - METHOD")
        if pair[0] == pair[1]:
            raise InputError(f"plan {path}, [study]: pair {' - '.join(pair)}, expected two different methods")
    for sweep in plan.sweeps:
        for key, value in itertools.product(sweep.methods, sweep.values):
            extra = _split_flag(path, sweep, value)
            _check_flags(path, plan, f"sweep {sweep.key}", plan.methods[key], extra)
        _check_epochs(path, f"sweep {sweep.key}", sweep.imbalance, plan)
    _check_epochs(path, "study", plan.tune_imbalance, plan)


def _check_flags(path: Path, plan: Plan, section: str, method: StudyMethod, extra: list[str] | tuple = ()) -> None:
    """Raise InputError if the script of a method refuses its flags, or if they set what an entry of [study] sets."""
    parser, shared, own = stage1_parser(method.stage1), [*plan.flags[method.stage1]], [*method.flags, *extra]
    args = parse_flags(path, section, SCRIPTS[method.stage1], (*shared, *own, *plan.data))
    without_data = parser.parse_args([*shared, *own])
    typed, in_data = typed_names(parser, [*shared, *own]), typed_names(parser, [*plan.data])
    set_by = {name: "data" for name in typed & in_data if getattr(without_data, name) != getattr(args, name)}
    own_names = typed_names(parser, own)
    set_by |= {"split_seed": "split_per_seed"} if plan.split_per_seed and "split_seed" in typed | in_data else {}
    set_by |= {"epochs": "lengths"} if plan.lengths and "epochs" in own_names | in_data else {}
    set_by |= {"lr": "rates"} if plan.rates and "lr" in in_data else {}
    for name, entry in sorted(set_by.items()):
        flag, where = f"--{name.replace('_', '-')}", section if name in own_names else "study"
        raise InputError(f"plan {path}, [{where}]: flags set {flag}, expected only {entry} to set it")


def _check_data(path: Path, plan: Plan) -> None:
    """Raise InputError unless long-tailed lists of the data set can be created at the plan's imbalances."""
    data_args = parse_flags(path, "study", SCRIPTS["contrast"], plan.data)
    spec = get_spec(data_args.dataset)
    if not spec.imbalance_ratio:
        known = ", ".join(default_imbalances())
        raise InputError(f"plan {path}, [study]: data has --dataset {data_args.dataset}, expected one of {known}")
    section, imbalances = "study", [(f"sweep {sweep.key}", sweep.imbalance) for sweep in plan.sweeps]
    imbalances += [("study", imbalance) for imbalance in (*plan.imbalances, plan.tune_imbalance)]
    try:
        largest = resolve_largest(spec, data_args.largest)
        for where, imbalance in imbalances:
            section = where
            resolve_imbalance(spec, imbalance, largest)
        resolve_split_seed(spec, 0 if plan.split_per_seed else data_args.split_seed)
        if plan.split_per_seed and ListFlags.from_args(data_args).name_all_lists:
            raise InputError("split_per_seed: not supported with flags that name all lists")
        if plan.split_per_seed and any(method.stage1 == "pixels" for method in plan.methods.values()):
            raise InputError("split_per_seed: not supported with stage1 pixels, which has one run for all seeds")
    except InputError as error:
        raise InputError(f"plan {path}, [{section}]: {error}") from None


def _split_flag(path: Path, sweep: Sweep, value: str) -> list[str]:
    try:
        return shlex.split(f"{sweep.flag} {value}")
    except ValueError as error:
        raise InputError(f"plan {path}, [sweep {sweep.key}]: flag {sweep.flag}: {error}") from None


def _check_epochs(path: Path, section: str, imbalance: float, plan: Plan) -> None:
    if plan.epochs and imbalance not in plan.epochs:
        known = ", ".join(f"{other:g}" for other in plan.epochs)
        raise InputError(f"plan {path}, [{section}]: no epochs for imbalance {imbalance:g}, expected one of {known}")
