"""Files and folders that are never half: written beside their place, flushed to disk, then renamed."""

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError, printable


def draft_pattern(name: str) -> str:
    """Glob pattern of the drafts of files of that name: what a kill can leave behind."""
    return f".{name}.draft-*"


def write_whole(path: Path, write: Callable[[BinaryIO], object], keep_old: Path | None = None) -> None:
    """Call write(file) on a draft and rename it to `path`; a failed write leaves the old file alone.

    Args:
        keep_old: where the old file goes, if there is one.

    Raises:
        InputError: as `check_regular`.
        OSError: the write failed, as on a full disk; it names `path`.
    """
    check_regular(path)
    if keep_old:
        check_regular(keep_old)
    try:
        handle, draft = tempfile.mkstemp(prefix=draft_pattern(path.name).rstrip("*"), dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)  # mkstemp's files are private
            if keep_old and path.exists():
                os.replace(path, keep_old)
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(path)
        raise
    _flush_folder(path.parent)


def check_regular(path: Path) -> None:
    """Refuse to replace what is no regular file.

    Raises:
        InputError: a folder, a device or a pipe is there.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is there and no regular file; nothing else is replaced, choose another name")


def first_free(name: Callable[[int], Path]) -> Path:
    """The first of name(1), name(2), ... that is not there."""
    return next(path for path in map(name, count(1)) if not path.exists())


def _flush_folder(folder: Path) -> None:
    """Bring a rename to disk: a file's own fsync does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def csv_text(rows: Iterable[Iterable]) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*map(_harmless, row)] for row in rows)
    return text.getvalue()


def _harmless(cell):
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    try:
        float(text)  # a number that was written out stays one
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
    return text


def json_text(value, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null in it."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Call write(folder) on a draft and rename it to `place`, unless `place` is there.

    Of two processes that start at once one wins and the other's copy is dropped.
    """
    if place.is_dir():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp's folders are private
        os.rename(draft, place)
    except OSError:
        if not place.is_dir():  # not lost to another process: a real failure
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
