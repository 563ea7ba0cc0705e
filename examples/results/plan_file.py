"""Read plan files and check them before any run starts. fashion.ini is a commented example."""

import configparser
import re
import shlex
from pathlib import Path

from examples.results.plan import PLANS_DIR, SCRIPTS, TRAINS_NETWORK, Plan, StudyMethod, Sweep, check_plan
from utils.errors import InputError, first_line

MAX_SEEDS, MAX_NUMBER = 1000, 1_000_000  # larger numbers are mistakes
KEY = re.compile(r"\w[\w.-]*")  # of a method or a sweep, which is part of names of folders


def read_plan(name_or_path: str) -> Plan:
    """Read a plan by the name of a file in this folder, or by its path.

    Raises:
        InputError: The file does not exist, or a section or an entry is missing, unknown or invalid.
    """
    path = (
        PLANS_DIR / f"{name_or_path}.ini"
        if "/" not in name_or_path and not name_or_path.endswith(".ini")
        else Path(name_or_path)
    )
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",), strict=True)
    try:
        with path.open(encoding="utf-8-sig") as file:
            parser.read_file(file)
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in PLANS_DIR.glob("*.ini")))
        raise InputError(
            f"plan {path}: cannot be read ({error.strerror}). Expected {known}, or the path of an .ini file"
        ) from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"plan {path}: {first_line(error)}") from None
    sections = {name: Entries(path, name, dict(parser[name])) for name in parser.sections()}
    plan = _build_plan(path, sections)
    for entries in sections.values():
        entries.refuse_unknown()
    check_plan(path, plan)
    _check_lengths(sections, plan)
    return plan


class Entries:
    """The entries of a section. Reading an entry removes it, so that the remaining entries are unknown ones."""

    def __init__(self, path: Path, section: str, values: dict[str, str]):
        self.path, self.section, self.values = path, section, values

    def input_error(self, message: str) -> InputError:
        return InputError(f"plan {self.path}, [{self.section}]: {message}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.pop(name, default)
        if value is None:
            raise self.input_error(f"{name} is missing")
        return value

    def words(self, name: str, default: str | None = None) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self.text(name, default)))
        except ValueError as error:
            raise self.input_error(f"{name}: {error}") from None

    def numbers(self, name: str, number_type: type, default: str | None = None) -> tuple:
        return self.as_numbers(name, self.words(name, default), number_type)

    def as_numbers(self, name: str, words: tuple[str, ...], number_type: type) -> tuple:
        try:
            values = tuple(map(number_type, words))
        except ValueError:
            raise self.input_error(f"{name}: found {' '.join(words)}, expected numbers") from None
        most = MAX_SEEDS if name in ("seeds", "more_seeds") else MAX_NUMBER
        if not all(0 < value <= most for value in values):
            raise self.input_error(f"{name}: found {' '.join(words)}, expected numbers above 0, at most {most}")
        return values

    def number(self, name: str, number_type: type, default: str | None = None):
        values = self.numbers(name, number_type, default)
        if len(values) != 1:
            raise self.input_error(f"{name}: found {len(values)} numbers, expected one")
        return values[0]

    def yes_or_no(self, name: str) -> bool:
        """Return whether an entry is `yes`. The default is `no`."""
        if (value := self.text(name, "no")) not in ("yes", "no"):
            raise self.input_error(f"{name}: found {value}, expected yes or no")
        return value == "yes"

    def refuse_unknown(self) -> None:
        if self.values:
            raise self.input_error(f"unknown entry {', '.join(self.values)}")


def _build_plan(path: Path, sections: dict[str, Entries]) -> Plan:
    if "study" not in sections:
        raise InputError(f"plan {path}: no section [study]")
    study, methods, sweeps = sections["study"], {}, []
    for name, entries in sections.items():
        kind, _, key = name.partition(" ")
        if kind in ("method", "sweep") and key and not KEY.fullmatch(key):
            raise entries.input_error(f"key {key!r}: expected letters, digits, '_', '-' and '.', such as [{kind} kcl]")
        if kind == "method" and key:
            texts = entries.text("title"), entries.text("stage1")
            longest = entries.number("longest", int) if "longest" in entries.values else None
            methods[key] = StudyMethod(key, *texts, entries.words("flags", ""), longest)
        elif kind == "sweep" and key:
            sweeps.append(_build_sweep(key, entries))
        elif name != "study":
            raise InputError(f"plan {path}: unknown section [{name}], expected [study], [method KEY] or [sweep KEY]")
    imbalances, lengths = study.numbers("imbalances", float), _lengths(study)
    if len({*imbalances}) < max(len(imbalances), 1):
        raise study.input_error("imbalances: expected one number or more, all different")
    seeds = max(lengths.items())[1] if lengths else study.number("seeds", int)
    pairs = [pair for line in study.text("pairs", "").splitlines() if (pair := line.strip())]
    plan = Plan(
        name=path.stem,
        title=study.text("title"),
        page=study.text("page", f"results_{path.stem}"),
        same=" ".join(study.text("same", "").split()),
        imbalances=imbalances,
        epochs=dict(zip(imbalances, _epochs(study, imbalances), strict=False)),
        lengths=lengths,
        seeds=seeds,
        more_seeds=study.number("more_seeds", int, str(seeds)),
        resolved=study.number("resolved", float, "0.5"),
        data=study.words("data"),
        flags={stage1: study.words(stage1, "") for stage1 in (*SCRIPTS, "heads")},
        rates=study.words("rates", ""),
        longest_tuned=study.number("longest_tuned", int, str(max(lengths))) if lengths else None,
        tune_imbalance=study.number("tune_imbalance", float, str(imbalances[0])),
        tune_seed=study.number("tune_seed", int, "100"),
        methods=methods,
        pairs=tuple(tuple(pair.split(" - ")) for pair in pairs),
        sweeps=tuple(sweeps),
        split_per_seed=study.yes_or_no("split_per_seed"),
    )
    if (fewest := min([seeds, *lengths.values()])) < 2:
        raise study.input_error(f"seeds {fewest}: expected 2 or more (one seed has no standard deviation)")
    if plan.more_seeds < seeds:
        raise study.input_error(f"more_seeds {plan.more_seeds}: expected at least the number of seeds, {seeds}")
    study.as_numbers("rates", plan.rates, float)
    return plan


def _check_lengths(sections: dict[str, Entries], plan: Plan) -> None:
    """Raise InputError if an entry that names a length is invalid."""
    study, known = sections["study"], ", ".join(map(str, plan.lengths))
    if plan.lengths and plan.epochs:
        raise study.input_error("lengths: not supported with epochs. Remove one of them")
    if plan.lengths and plan.longest_tuned not in plan.lengths:
        raise study.input_error(f"longest_tuned {plan.longest_tuned}: expected one of the lengths {known}")
    for key, method in plan.methods.items():
        entries = sections[f"method {key}"]
        if method.longest and method.stage1 not in TRAINS_NETWORK:
            raise entries.input_error(f"longest: not supported with stage1 {method.stage1}, which trains no network")
        _check_length(entries, "longest", method.longest, plan)
        if plan.pairs and key in plan.pairs[0] and method not in plan.methods_at(plan.length):
            raise entries.input_error(
                f"longest {method.longest}: expected {plan.length}, because seeds are added to the first pair there"
            )
    if plan.lengths and not any(method.stage1 in TRAINS_NETWORK for method in plan.methods_at(plan.length)):
        raise study.input_error(f"lengths: no method is trained for {plan.length} epochs")
    for sweep in plan.sweeps:
        entries = sections[f"sweep {sweep.key}"]
        if plan.lengths and not sweep.length:
            raise entries.input_error(f"length is missing, expected one of the lengths {known}")
        _check_length(entries, "length", sweep.length, plan)
        for key in sweep.methods:
            if plan.methods[key] not in plan.methods_at(sweep.length):
                raise entries.input_error(f"length {sweep.length}: {key} is not trained for so long")


def _check_length(entries: Entries, name: str, length: int | None, plan: Plan) -> None:
    """Raise InputError if an optional entry is not one of the plan's lengths."""
    if length and not plan.lengths:
        raise entries.input_error(f"{name} {length}: not supported without lengths. Remove this entry")
    if length and length not in plan.lengths:
        known = ", ".join(map(str, plan.lengths))
        raise entries.input_error(f"{name} {length}: expected one of the lengths {known}")


def _epochs(study: Entries, imbalances: tuple[float, ...]) -> tuple[int, ...]:
    epochs = study.numbers("epochs", int, "")
    if epochs and len(epochs) != len(imbalances):
        raise study.input_error(
            f"epochs: found {len(epochs)} numbers, expected one for each of {len(imbalances)} imbalances"
        )
    return epochs


def _lengths(study: Entries) -> dict[int, int]:
    """Return length -> number of seeds, shortest first. `seeds` has one number for all lengths or one for each."""
    lengths = study.numbers("lengths", int, "")
    if len({*lengths}) < len(lengths):
        raise study.input_error("lengths: found a value twice, expected different values")
    if not lengths:
        return {}
    seeds = study.numbers("seeds", int)
    if len(seeds) not in (1, len(lengths)):
        raise study.input_error(f"seeds: found {len(seeds)} numbers, expected one for each of {len(lengths)} lengths")
    return dict(sorted(zip(lengths, seeds * len(lengths) if len(seeds) == 1 else seeds, strict=True)))


def _build_sweep(key: str, entries: Entries) -> Sweep:
    values, labels = entries.words("values"), entries.words("labels", "")
    if labels and len(labels) != len(values):
        raise entries.input_error(f"labels: found {len(labels)}, expected one for each of {len(values)} values")
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
        entries.number("length", int) if "length" in entries.values else None,
    )
