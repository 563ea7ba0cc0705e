"""Recipes: files of flags, which a command line takes in by @FILE."""

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import InputError, first_line


def expand(words: list[str], check: Callable[[list[str]], None] = lambda words: None) -> list[str]:
    """The words of a command line, each @FILE of them replaced by what is in the file.

    A line has flags with their values, in shell quoting; from # on it is a comment. A line @OTHER takes in another
    recipe, named from the folder of its own. Of a flag that is given again the later value holds.

    Args:
        check: raises a ValueError for the words of a line that are no flags and values.

    Raises:
        InputError: a file that cannot be read, or that takes in itself; a wrong line, by file and number.
    """
    given = [list(_words(Path(word[1:]), check)) if word.startswith("@") else [word] for word in words]
    return [word for part in given for word in part]


def _words(path: Path, check: Callable[[list[str]], None], outer: tuple[str, ...] = (), at: str = "") -> Iterator[str]:
    """outer: the files that take this one in. at: the line of the last of them that does, for messages."""
    named, real = f"{at}{path}", os.path.realpath(path)
    if real in outer:
        raise InputError(f"recipe {named}: takes in itself")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise InputError(f"recipe {named}: cannot be read ({reason}), expected a file of flags") from None
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("@"):
                if len(words) > 1:
                    raise ValueError(f"found {' '.join(words[1:])} behind {words[0]}, expected a line of its own")
                yield from _words(path.parent / words[0][1:], check, (*outer, real), f"{path}:{number}: ")
            elif words:
                check(words)
                yield from words
        except ValueError as error:
            raise InputError(f"recipe {path}:{number}: {first_line(error)}") from None
