"""Flags of stage 2 that are taken from its checkpoint, unless they are typed.

An encoder must see images as it was trained to: of the same size, normalised with the same statistics, from the same
lists. Such a flag declares `stored=ENCODER`. With --evaluate, a flag that declares `stored=RESULT` is also taken from
the checkpoint, so that the accuracies are those of results.json.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from imagenet_inat import datasets
from imagenet_inat.paths import SPLITS, ListFlags
from moco.heads import head_flags
from utils.cli.flags import ENCODER, RESULT, effect_of
from utils.cli.parser import Parser, long_spelling, typed_names
from utils.cli.parser import parse as parse_and_check
from utils.distributed import log
from utils.errors import InputError
from utils.run import checkpoint
from utils.safe_load import is_plain

LISTS = tuple(f"{split}_txt" for split in SPLITS)
OF_ONE_DATA_SET = ("data_root", "splits", *LISTS, "imbalance", "largest", "split_seed", "holdout")


@dataclass(frozen=True)
class StoredArgs:
    """The arguments that a checkpoint was trained with.

    Attributes:
        source: The checkpoint.
        values: Name -> value; empty if the file stores no arguments, as other tools' files do.
        typed: Names of the arguments that were typed for this run.
    """

    source: Path
    values: dict[str, object]
    typed: frozenset[str]

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the checkpoint's data set, if it stores it."""
        value = self.values.get("num_classes")
        return value if isinstance(value, int) and value > 0 else None

    def evaluated_splits(self, val_is_test: bool) -> tuple[str, ...]:
        """Return the splits that --evaluate measures: only the test list if no other list was typed with it."""
        return ("test",) if val_is_test or self.typed & {*LISTS, "splits"} == {"test_txt"} else ("val", "test")

    def report_other_lists(self, dataset: str, digests: dict[str, str], files: dict[str, Path]) -> None:
        """Print a note for each list whose content is not that of the checkpoint.

        Args:
            dataset: --dataset.
            digests: {"train_list": digest}, and so on. files: the list of each split.
        """
        if dataset != self.values.get("dataset"):
            return
        for name, digest in digests.items():
            split = name.removesuffix("_list")
            if self.values.get(name, digest) != digest:
                log(f"note: {files[split]}: differs from the {split} list of {self.source}")


def parse(parser: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, StoredArgs]:
    """Parse a command line of stage 2, with the arguments stored in its checkpoint as defaults.

    A typed flag that differs from the stored one is used, and reported in a note.

    Returns:
        The arguments, and the StoredArgs of the checkpoint.

    Raises:
        InputError: The checkpoint is not named, cannot be read, or stores an argument that its flag does not accept.
    """
    args = parse_and_check(parser, argv)
    source = head_flags.find_checkpoint(args.evaluate, args.resume, args.pretrained)
    kinds = (ENCODER, RESULT) if args.evaluate else (ENCODER,)
    flags = [flag for flag in parser._actions if effect_of(flag).stored in kinds]
    stored = StoredArgs(source, _read(source, flags), frozenset(typed_names(parser, argv)))
    words = _checked_words(parser, flags, _defaults(stored, vars(args)), source)
    for flag in flags:
        if flag.dest in stored.typed & stored.values.keys() and effect_of(flag).affects_result:
            _report_difference(flag, getattr(args, flag.dest), stored)
    completed = parser.parse_args([*words, *(sys.argv[1:] if argv is None else argv)])
    completed.pretrained = None if args.evaluate else str(source)  # the checkpoint of a run folder
    return completed, stored


def parse_stored(parser: Parser, source: Path) -> argparse.Namespace:
    """Return the arguments that a checkpoint was trained with, of the parser's flags that declare `stored`.

    Raises:
        InputError: the checkpoint cannot be read, stores no arguments, or stores one that its flag does not accept.
    """
    flags = [flag for flag in parser._actions if effect_of(flag).stored]
    values = _read(source, flags)
    if "dataset" not in values:
        raise InputError(
            f"checkpoint {source}: does not store how it sees images, expected a checkpoint of stage 2 of this project"
        )
    return parser.parse_args(_checked_words(parser, flags, values, source))


def _checked_words(parser: Parser, flags: list[argparse.Action], values: dict[str, object], source: Path) -> list[str]:
    """Return the command line that sets flags to stored values. Raise InputError if the parser does not accept it."""
    words = [word for flag in flags for word in _words(flag, values.get(flag.dest))]
    try:
        parser.check_words(words)
    except ValueError as error:
        raise InputError(f"checkpoint {source}: its arguments cannot be used: {error}") from None
    return words


def _read(source: Path, flags: list[argparse.Action]) -> dict[str, object]:
    """Return the arguments in a checkpoint of this project by name. Other files store none."""
    entries = {} if source.suffix == ".safetensors" else checkpoint.read_file(source)
    values = entries.get("args")
    if not isinstance(values, dict) or values.get("dataset") not in datasets.names():
        return {"arch": entries["arch"]} if isinstance(entries.get("arch"), str) else {}
    values = {name: value for name, value in values.items() if is_plain(value)}
    missing = [flag for flag in flags if flag.dest not in values and effect_of(flag).legacy is not argparse.SUPPRESS]
    return values | {flag.dest: effect_of(flag).legacy_value(argparse.Namespace(**values)) for flag in missing}


def _defaults(stored: StoredArgs, without_stored: dict[str, object]) -> dict[str, object]:
    """Return the stored values that apply to a command line. without_stored: its arguments without them."""
    values, omitted = dict(stored.values), set(stored.typed)
    if "dataset" in stored.typed and without_stored["dataset"] != values.get("dataset"):
        omitted |= {*OF_ONE_DATA_SET}
        values["statistics"] = _statistics(values)
    if "splits" in stored.typed:
        omitted |= {*LISTS}
    values = {name: value for name, value in values.items() if name not in omitted}
    if ListFlags.from_args(argparse.Namespace(**without_stored | values)).name_all_lists:
        values |= {"imbalance": None, "largest": None, "split_seed": None}  # the lists decide
    return values


def _words(flag: argparse.Action, value: object) -> list[str]:
    """Return the words that set a flag to a value on a command line. None and False are defaults."""
    if value is None or value is False:
        return []
    name = long_spelling(flag)
    if flag.nargs == 0:
        return [name]
    return [name, *map(str, value)] if isinstance(value, list) else [f"{name}={value}"]


def _statistics(values: dict[str, object]) -> object:
    """Return the name of the data set whose mean and std normalise the images."""
    return values.get("statistics") or values.get("dataset")


def _report_difference(flag: argparse.Action, typed: object, stored: StoredArgs) -> None:
    """Print a note if the typed value of a flag differs from the checkpoint."""
    then = stored.values[flag.dest]
    if flag.dest == "statistics":
        specs = [datasets.get_spec(name) for name in (typed, _statistics(stored.values))]
        if (specs[0].mean, specs[0].std) == (specs[1].mean, specs[1].std):
            return
        then = specs[1].name
    if typed != then:
        text = "without it" if then in (None, False) else f"with {_text(then)}"
        log(f"note: {long_spelling(flag)} {_text(typed)}: {stored.source} was trained {text}")


def _text(value: object) -> str:
    return (
        " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
