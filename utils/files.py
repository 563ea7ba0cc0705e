"""Write files and folders atomically: write a draft beside the target, flush it to disk, then rename it."""

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError, printable


def draft_pattern(name: str) -> str:
    """Return the glob pattern of the drafts of a file, which a killed process can leave behind."""
    return f".{name}.draft-*"


def write_atomically(path: Path, write: Callable[[BinaryIO], object], backup_path: Path | None = None) -> None:
    """Call write(file) on a draft and rename it to `path`; if the write fails, the old file is unchanged.

    Args:
        backup_path: where the old file is kept, if it exists; None: it is replaced. `path` exists at every moment.

    Raises:
        InputError: see `check_regular`.
        OSError: the write failed, for example on a full disk; its filename is `path`.
    """
    check_regular(path)
    if backup_path:
        check_regular(backup_path)
    try:
        descriptor, draft = tempfile.mkstemp(prefix=draft_pattern(path.name).rstrip("*"), dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)  # mkstemp's files are private
            if backup_path and path.exists():
                _back_up(path, backup_path)
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(path)
        raise
    _flush_folder(path.parent)


def _back_up(path: Path, backup_path: Path) -> None:
    """Replace the file at `backup_path` by a link to the file at `path`, or by a copy where links are not supported."""
    link = backup_path.with_name(draft_pattern(backup_path.name).replace("*", "link"))
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # some file systems have no links
        shutil.copyfile(path, link)
    os.replace(link, backup_path)
    link.unlink(missing_ok=True)  # a rename between two links of one file does nothing


def file_problem(path: str | Path) -> str:
    """Return why a path cannot be read as a file, such as "no such file", or "" if it is a file."""
    path = Path(path)
    if path.is_file():
        return ""
    return "is a folder" if path.is_dir() else "is a device or a pipe" if path.exists() else "no such file"


def check_regular(path: Path) -> None:
    """Raise InputError if `path` is a folder, a device or a pipe, which must not be replaced or read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: exists but is not a regular file; choose another path")


def check_writable_folder(path: Path, what: str, fix: str) -> None:
    """Raise InputError if a command cannot write to a folder, or cannot create it, before anything is computed.

    Args:
        what: name of the folder in the message. fix: what to do, for the message.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{what} {path}: {existing} is not a writable folder; {fix}")


def check_output(flag: str, path: Path, overwrite: bool, endings: Sequence[str] = ()) -> None:
    """Raise InputError if a command cannot write its output file, before anything is computed.

    Args:
        flag: the argument that names the file, for messages.
        endings: file extensions that are accepted; empty: any.
    """
    if endings and path.suffix not in endings:
        raise InputError(f"{flag} {path}: unknown file extension, expected {' or '.join(endings)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{flag} {path}: expected a file name in an existing folder")
    check_regular(path)
    if path.exists() and not overwrite:
        raise InputError(f"{flag} {path}: already exists; --overwrite replaces it")


def unused_name(name: Callable[[int], Path]) -> Path:
    """Return the first of name(1), name(2), ... that does not exist."""
    return next(path for path in map(name, count(1)) if not path.exists())


def _flush_folder(folder: Path) -> None:
    """Flush a rename to disk, which the fsync of the file does not do."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def format_csv(rows: Iterable[Iterable]) -> str:
    """Return a table as CSV; an apostrophe is put before text that a spreadsheet would run as a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*map(_escape_formula, row)] for row in rows)
    return text.getvalue()


def _escape_formula(cell):
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    try:
        float(text)  # a number stays a number, even if it begins with a minus
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
    return text


def format_json(value, indent: int | None = None) -> str:
    """Return standard JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(folder) on a draft and rename it to `path`, unless `path` exists.

    If two processes do this at once, one copy is kept and the other is deleted.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp's folders are private
        os.rename(draft, path)
    except OSError:
        if not path.is_dir():  # if it exists, another process was faster, which is not a failure
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
