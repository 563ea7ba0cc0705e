"""A study's plan: a file that says which data, methods, seeds and sweeps, and by which flags.

examples/results/fashion.ini is one, and explains itself.
"""

import argparse
import configparser
import itertools
import shlex
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError, first_line

FOLDER = Path(__file__).parent
SCRIPTS = {  # how a method makes its features -> the script that does
    "contrast": "main_moco_supcon_imba.py",
    "cross-entropy": "-m examples.cross_entropy",
    "pixels": "-m examples.pixels",
}
HEADS = "main_lincls_imba.py"
VIEWS = {"contrast": 2, "cross-entropy": 1}  # of an image, an epoch; the ways that are trained, with a learning rate


class Method(NamedTuple):
    """key: in the names of run folders. title: in tables. way: a key of SCRIPTS. flags: its own."""

    key: str
    title: str
    way: str
    flags: tuple[str, ...]


class Sweep(NamedTuple):
    """One flag of some methods, at one imbalance. values: as they are typed. axis, labels, caption: of its figure."""

    key: str
    methods: tuple[str, ...]
    flag: str
    values: tuple[str, ...]
    imbalance: float
    seeds: int
    axis: str
    labels: tuple[str, ...]
    caption: str


class Plan(NamedTuple):
    """What a plan file says.

    page: the name of its file. same: what all methods have in common, in words. epochs: of contrast at each imbalance,
    which sees two views of an image in one; cross-entropy has twice as many; empty: the flags say it. flags: of all
    commands on the data, and of each way to train. rates: learning rates to choose from, at tune_imbalance by a run of
    tune_seed. pairs: keys of two methods, the first minus the second. more_seeds: of the first pair, where its
    difference is not resolved to within `resolved` points.
    """

    name: str
    title: str
    page: str
    same: str
    imbalances: tuple[float, ...]
    epochs: dict[float, int]
    seeds: int
    more_seeds: int
    resolved: float
    data: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
    rates: tuple[str, ...]
    tune_imbalance: float
    tune_seed: int
    methods: dict[str, Method]
    pairs: tuple[tuple[str, str], ...]
    sweeps: tuple[Sweep, ...]


def read_plan(named: str) -> Plan:
    """A plan by the name of a file in this folder, or by its path.

    Raises:
        InputError: no such file; a section or an entry that is missing, strange, or wrong, all named.
    """
    path = FOLDER / f"{named}.ini" if "/" not in named and not named.endswith(".ini") else Path(named)
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",), strict=True)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.ini")))
        raise InputError(f"plan {path}: cannot be read ({error.strerror}), expected {known}, or a file") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"plan {path}: {first_line(error)}") from None
    sections = {name: Entries(path, name, dict(parser[name])) for name in parser.sections()}
    plan = _plan(path, sections)
    for entries in sections.values():
        entries.refuse_rest()
    _check(path, plan)
    return plan


class Entries:
    """The entries of a section, each read once; what is left in the end is strange."""

    def __init__(self, path: Path, section: str, values: dict[str, str]):
        self.path, self.section, self.values = path, section, values

    def wrong(self, message: str) -> InputError:
        return InputError(f"plan {self.path}, [{self.section}]: {message}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.pop(name, default)
        if value is None:
            raise self.wrong(f"lacks {name}")
        return value

    def words(self, name: str, default: str | None = None) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self.text(name, default)))
        except ValueError as error:
            raise self.wrong(f"{name}: {error}") from None

    def numbers(self, name: str, kind: type, default: str | None = None) -> tuple:
        try:
            values = tuple(kind(word) for word in self.words(name, default))
        except ValueError:
            raise self.wrong(f"{name}: expected numbers") from None
        if not all(value > 0 for value in values):
            raise self.wrong(f"{name}: expected numbers above 0")
        return values

    def number(self, name: str, kind: type, default: str | None = None):
        values = self.numbers(name, kind, default)
        if len(values) != 1:
            raise self.wrong(f"{name}: found {len(values)} numbers, expected one")
        return values[0]

    def refuse_rest(self) -> None:
        if self.values:
            raise self.wrong(f"{', '.join(self.values)}: unknown")


def _plan(path: Path, sections: dict[str, Entries]) -> Plan:
    if "study" not in sections:
        raise InputError(f"plan {path}: has no section [study]")
    study, methods, sweeps = sections["study"], {}, []
    for name, entries in sections.items():
        kind, _, key = name.partition(" ")
        if kind == "method" and key:
            methods[key] = Method(key, entries.text("title"), entries.text("way"), entries.words("flags", ""))
        elif kind == "sweep" and key:
            sweeps.append(_sweep(key, entries))
        elif name != "study":
            raise InputError(f"plan {path}: section [{name}], expected [study], [method KEY] or [sweep KEY]")
    seeds, imbalances = study.number("seeds", int), study.numbers("imbalances", float)
    plan = Plan(
        path.stem,
        study.text("title"),
        study.text("page", f"results_{path.stem}"),
        " ".join(study.text("same", "").split()),
        imbalances,
        dict(zip(imbalances, _epochs(study, imbalances), strict=False)),
        seeds,
        study.number("more_seeds", int, str(seeds)),
        study.number("resolved", float, "0.5"),
        study.words("data"),
        {way: study.words(way, "") for way in (*SCRIPTS, "heads")},
        study.words("rates", ""),
        study.number("tune_imbalance", float, str(imbalances[0])),
        study.number("tune_seed", int, "100"),
        methods,
        tuple(tuple(pair.split(" - ")) for line in study.text("pairs", "").splitlines() if (pair := line.strip())),
        tuple(sweeps),
    )
    if seeds < 2:
        raise study.wrong(f"seeds {seeds}: expected 2 or more, for there to be a spread")
    return plan


def _epochs(study: Entries, imbalances: tuple[float, ...]) -> tuple[int, ...]:
    epochs = study.numbers("epochs", int, "")
    if epochs and len(epochs) != len(imbalances):
        raise study.wrong(f"epochs: found {len(epochs)} numbers, expected one for each of {len(imbalances)} imbalances")
    return epochs


def _sweep(key: str, entries: Entries) -> Sweep:
    values, labels = entries.words("values"), entries.words("labels", "")
    if labels and len(labels) != len(values):
        raise entries.wrong(f"labels: found {len(labels)}, expected one for each of {len(values)} values")
    return Sweep(
        key,
        entries.words("methods"),
        entries.text("flag"),
        values,
        entries.number("imbalance", float),
        entries.number("seeds", int),
        entries.text("axis"),
        labels or values,
        " ".join(entries.text("caption").split()),
    )


def _check(path: Path, plan: Plan) -> None:
    """Raises InputError: a method or way that is not there, or flags that their script does not take."""
    if not plan.methods:
        raise InputError(f"plan {path}: has no section [method KEY]")
    for method in plan.methods.values():
        if method.way not in SCRIPTS:
            raise InputError(f"plan {path}, [method {method.key}]: way {method.way}, expected {', '.join(SCRIPTS)}")
        flags = (*plan.flags[method.way], *method.flags, *plan.data)
        args = parsed(path, f"method {method.key}", method.way, flags)
        every = getattr(args, "monitor_freq", 0)
        for epochs in plan.epochs.values():
            if every and epochs % every:
                raise InputError(
                    f"plan {path}, [study]: epochs {epochs}: expected a multiple of --monitor-freq {every}"
                )
    named = [("study", key) for pair in plan.pairs for key in pair]
    named += [(f"sweep {sweep.key}", key) for sweep in plan.sweeps for key in sweep.methods]
    for section, key in named:
        if key not in plan.methods:
            known = ", ".join(plan.methods)
            raise InputError(f"plan {path}, [{section}]: unknown method {key}, expected one of {known}")
    for pair in plan.pairs:
        if len(pair) != 2:
            raise InputError(f"plan {path}, [study]: pair {pair[0]}, expected METHOD - METHOD")
    for sweep in plan.sweeps:
        for key, value in itertools.product(sweep.methods, sweep.values):
            method = plan.methods[key]
            parsed(path, f"sweep {sweep.key}", method.way, (*method.flags, *shlex.split(f"{sweep.flag} {value}")))


def parsed(path: Path, section: str, way: str, words: tuple[str, ...]) -> argparse.Namespace:
    """The arguments; raises InputError unless the script of a way takes these flags."""
    parser = import_module(SCRIPTS[way].removeprefix("-m ").removesuffix(".py")).get_args_parser()

    def refuse(message: str):
        raise InputError(f"plan {path}, [{section}]: {message}")

    parser.error = refuse
    return parser.parse_args(list(words))
