"""Recipes: files of flags, which a command line includes with @FILE."""

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import InputError, first_line


def expand(words: list[str], check: Callable[[list[str]], None] = lambda words: None) -> list[str]:
    """Return the words of a command line, with each @FILE replaced by the file's flags.

    A line contains flags with their values, in shell quoting; # begins a comment. A line @OTHER includes another
    recipe, relative to the folder of the including file. If a flag is repeated, its last value is used.

    Args:
        check: raises ValueError if the words of a line are not flags and values.

    Raises:
        InputError: a file cannot be read or includes itself, or a line is wrong (named as FILE:LINE).
    """
    expanded = [list(_words(Path(word[1:]), check)) if word.startswith("@") else [word] for word in words]
    return [word for part in expanded for word in part]


def _words(path: Path, check: Callable[[list[str]], None], outer: tuple[str, ...] = (), at: str = "") -> Iterator[str]:
    """Yield the words of a file. outer: the files that include it. at: FILE:LINE of the innermost include."""
    named, real = f"{at}{path}", os.path.realpath(path)
    if real in outer:
        raise InputError(f"recipe {named}: includes itself; remove the line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"recipe {named}: cannot be read ({reason}), expected a file of flags") from None
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("@"):
                if len(words) > 1:
                    raise ValueError(f"found {' '.join(words[1:])} after {words[0]}, expected only the @FILE")
                yield from _words(path.parent / words[0][1:], check, (*outer, real), f"{path}:{number}: ")
            elif words:
                check(words)
                yield from words
        except ValueError as error:
            raise InputError(f"recipe {path}:{number}: {first_line(error)}") from None
