"""Files that are never half: written beside their place, flushed to disk, then renamed."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def draft_pattern(name: str) -> str:
    """Glob pattern of the drafts of files of that name: what a kill can leave behind."""
    return f".{name}.draft-*"


def write_whole(path: Path, write: Callable[[BinaryIO], object], keep_old: Path | None = None) -> None:
    """Call write(file) on a draft and rename it to `path`; a failed write leaves the old file alone.

    Args:
        keep_old: where the old file goes, if there is one.

    Raises:
        OSError: the write failed, as on a full disk; it names `path`.
    """
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
