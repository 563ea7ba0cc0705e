"""Recipes: files of flags, which a command line includes with @FILE."""

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import InputError, first_line

MAX_LINES, MAX_CHARACTERS = 1000, 100_000  # of flags in all recipes of a command; of one file
MAX_DEPTH = 20  # recipes that include each other


def expand(words: list[str], check: Callable[[list[str]], None] = lambda words: None) -> list[str]:
    """Return the words of a command line, with each @FILE replaced by the file's flags.

    A line contains flags with their values, in shell quoting; # begins a comment. A line @OTHER includes another
    recipe, relative to the folder of the including file. If a flag is repeated, its last value is used.

    Args:
        check: raises ValueError if the words of a line are not flags and values.

    Raises:
        InputError: a file cannot be read or includes itself, a line is wrong (named as FILE:LINE), or there are more
            lines than MAX_LINES.
    """
    lines = 0

    def check_line(words: list[str]) -> None:
        nonlocal lines
        lines += 1
        if lines > MAX_LINES:
            raise ValueError(f"more than {MAX_LINES} lines with flags in all recipes; is this the right file?")
        if not words[0].startswith("@"):
            check(words)

    expanded = [list(_words(Path(word[1:]), check_line)) if word.startswith("@") else [word] for word in words]
    return [word for part in expanded for word in part]


def _words(path: Path, check: Callable[[list[str]], None], outer: tuple[str, ...] = (), at: str = "") -> Iterator[str]:
    """Yield the words of a file. outer: the files that include it. at: FILE:LINE of the innermost include."""
    named, real = f"{at}{path}", os.path.realpath(path)
    if real in outer:
        raise InputError(f"recipe {named}: includes itself; remove the line")
    if len(outer) >= MAX_DEPTH:
        raise InputError(f"recipe {named}: included through {MAX_DEPTH} other recipes, expected fewer")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"recipe {named}: cannot be read ({reason}), expected a file of flags") from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"recipe {named}: more than {MAX_CHARACTERS} characters, expected a file of flags")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                check(words)
            if words and words[0].startswith("@"):
                if len(words) > 1:
                    raise ValueError(f"found {' '.join(words[1:])} after {words[0]}, expected only the @FILE")
                yield from _words(path.parent / words[0][1:], check, (*outer, real), f"{path}:{number}: ")
            else:
                yield from words
        except ValueError as error:
            raise InputError(f"recipe {path}:{number}: {first_line(error)}") from None
