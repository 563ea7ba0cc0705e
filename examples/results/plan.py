"""The plan of a study: data, methods, seeds, sweeps and their flags."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from utils.parser import Parser

FOLDER = Path(__file__).parent
SCRIPTS = {  # way (how a method computes features) -> its script
    "contrast": "main_moco_supcon_imba.py",
    "cross-entropy": "-m examples.cross_entropy",
    "pixels": "-m examples.pixels",
}
HEADS = "main_lincls_imba.py"
VIEWS = {"contrast": 2, "cross-entropy": 1}  # views per image and epoch, for the ways that are trained


class Method(NamedTuple):
    """A method of a study.

    Attributes:
        key: Name in run folders.
        title: Name in tables.
        way: Key of SCRIPTS.
        flags: Flags of this method only.
    """

    key: str
    title: str
    way: str
    flags: tuple[str, ...]


class Sweep(NamedTuple):
    """Runs that vary one flag of some methods, at one imbalance.

    Attributes:
        values: Values of the flag, as typed.
        axis, labels, caption: Axis label, tick labels and caption of its figure.
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


class Plan(NamedTuple):
    """The content of a plan file.

    Attributes:
        page: Name of the page, without .md.
        same: What all methods have in common, as text for the page.
        epochs: Imbalance -> epochs of contrastive training, or empty if the flags set them. Cross-entropy trains twice
            as many epochs, because it sees one view of an image per epoch instead of two.
        data: Flags of all commands.
        flags: Way (or "heads") -> its flags.
        rates: Learning rates to select from, with one run of tune_seed each at tune_imbalance.
        pairs: Keys of two methods to compare, the first minus the second.
        more_seeds: Number of seeds of the first pair, if its difference is not resolved to within `resolved` points.
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


def parser_of(way: str) -> Parser:
    """Return the parser of the script of a way."""
    return parser_named(SCRIPTS[way].removeprefix("-m "))


@cache
def parser_named(script: str) -> Parser:
    return import_module(script.removesuffix(".py")).get_args_parser()
