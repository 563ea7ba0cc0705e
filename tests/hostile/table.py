"""Tables of bad inputs: a row is a name, a reader, the bad input, and the facts that the message must name.

A reader writes the bad input into a folder and returns the call that reads it. Its arguments are the bad input, the
folder, and a function that returns a fixture by its name. Facts are separated by blanks; a tuple holds facts that
contain blanks. The fixture `check` checks a row.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Reader = Callable[[object, Path, Callable], Callable[[], object]]
Row = tuple[str, Reader, object, str | tuple]


def parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    """Run a test for every row of a table."""
    params = [pytest.param(*row, id=f"{number} {name}") for number, (name, *row) in enumerate(rows)]
    return pytest.mark.parametrize(("reader", "bad", "facts"), params)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file in a folder, except the lock file, in which each run writes its process."""
    paths = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def copy_run(run: Path, folder: Path) -> Path:
    """Copy a run folder, without the files that a report does not read."""
    ignored = shutil.ignore_patterns("*.pth.tar", "train", "val", "test", "*.safetensors")
    return shutil.copytree(run, folder / "run", ignore=ignored)


def replace_value(value, at: tuple, new):
    """Replace the value at one place in JSON data, or remove it if the new value is `...`; return the data."""
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value
