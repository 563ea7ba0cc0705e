"""Files and folders that are never half: written beside their place, flushed to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call write(file) on a draft and rename it to `path`; a failed write leaves the old file alone."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)  # mkstemp's files are private
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write(text.encode()))


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
