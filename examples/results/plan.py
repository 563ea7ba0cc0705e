"""A study's plan: which data, methods, seeds and sweeps, and by which flags."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from utils.parser import Parser

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


def parser_of(way: str) -> Parser:
    """Of the script of a way to make features."""
    return parser_named(SCRIPTS[way].removeprefix("-m "))


@cache
def parser_named(script: str) -> Parser:
    return import_module(script.removesuffix(".py")).get_args_parser()
