"""What anybody may have written: looked at before it is read, and before it is believed."""

import json
import pickletools
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from utils.errors import InputError

MOST = 2**31  # of what is counted: epochs, steps, images of a class
LARGE = 1e100  # of a number that can still be drawn
DEPTH = 20  # of plain data within plain data
PICKLES = 5  # one after the other, in old files of torch.save


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST


def is_number(value: object) -> bool:
    """An int or float that is finite, and can be computed with."""
    return type(value) in (int, float) and -LARGE < value < LARGE


def is_plain(value: object) -> bool:
    """Whether it is what arguments are: a flag, a number, a word or nothing, or a list of those."""
    if isinstance(value, list):
        return all(not isinstance(entry, list) and is_plain(entry) for entry in value)
    return (
        value is None or isinstance(value, bool) or is_number(value) or (isinstance(value, str) and "\0" not in value)
    )


def parse_json(text: str | bytes) -> object:
    """JSON, in which a number that is none, as NaN, is null. Raises ValueError: it is none."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, otherwise: str = "not readable") -> dict:
    """The object in a JSON file. Raises InputError: no such file, or no object; otherwise: what it means if it is not
    there."""
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{otherwise}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def swollen(path: str | Path) -> str | None:
    """Why an archive (.npz, a file of torch.save) would fill more memory than it has bytes; None: it would not.

    Both are written without compression, so that what an archive holds is never more than the file.
    """
    with suppress(zipfile.BadZipFile, OSError):  # to be said by who reads it
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                claimed, size = sum(entry.file_size for entry in archive.infolist()), Path(path).stat().st_size
            if claimed > size:
                return f"claims to hold {claimed} bytes and has {size}; it was not written by this project"
    return None


def overgrown(state: object, size: int) -> str | None:
    """Why a table that was read from a file of `size` bytes cannot be from there; None: it can.

    A tensor may claim to have more numbers than it holds, and lists may hold each other.
    """
    level, seen = [state], set()
    for _ in range(DEPTH):
        inner: list[object] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if torch.is_tensor(value) and value.numel() * value.element_size() > size:
                return f"a tensor of shape {tuple(value.shape)} is larger than the file"
            inner += _held_by(value)
        level = inner
    return f"its entries are nested more than {DEPTH} deep" if level else None


def _held_by(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def code_in(path: str | Path) -> str | None:
    """The first object that a pickle, or a file of torch.save, asks for and that is not PyTorch's; None: none.

    The file is looked through, nothing of it is loaded.
    """
    with suppress(Exception):  # what is damaged ends the search
        if not zipfile.is_zipfile(path):
            with Path(path).open("rb") as file:
                return next((name for _ in range(PICKLES) for name in _foreign_names(file)), None)
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
            return next((name for entry in pickles for name in _foreign_names(archive.read(entry))), None)
    return None


def _foreign_names(pickle) -> Iterable[str]:
    words: list[str] = []
    for code, argument, _ in pickletools.genops(pickle):
        if isinstance(argument, str):
            words.append(argument)
        if code.name == "GLOBAL":
            name = argument.replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            name = ".".join(words[-2:])
        else:
            continue
        if not name.startswith(("torch.", "collections.OrderedDict")):
            yield name
