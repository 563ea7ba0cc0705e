"""Checks of messages: the facts in them (flag, file, line, value), never the wording."""

import re
from collections.abc import Callable

import pytest

from utils.errors import InputError


def refusal(action: Callable[[], object], *facts: object) -> str:
    """Check that action() raises an InputError whose message is one line and names every fact; return the message."""
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message, message
    assert_names(message, *facts)
    return message


def exit_message(action: Callable[[], object], capsys: pytest.CaptureFixture, *facts: object, code: int = 2) -> str:
    """Check that action() exits with this code and one line on stderr that names every fact; return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        action()
    message = capsys.readouterr().err
    assert end.value.code == code
    assert message.startswith("error: ") and message.count("\n") == 1, message
    assert_names(message, *facts)
    return message


def line_with(text: str, *facts: object) -> str:
    """Check that exactly one line of the text names every fact; return the line."""
    lines = [line for line in text.splitlines() if all(_names(line, fact) for fact in facts)]
    assert len(lines) == 1, f"{len(lines)} lines name {facts}, expected 1:\n{text}"
    return lines[0]


def assert_names(message: str, *facts: object) -> None:
    missing = [fact for fact in facts if not _names(message, fact)]
    assert not missing, f"{missing} not named in: {message}"


def at_line(file: object, number: int) -> re.Pattern:
    """Return a pattern that finds a line of a file in a message, as "FILE:NUMBER" or "FILE, line NUMBER"."""
    return re.compile(rf"{re.escape(str(file))}\D{{1,8}}{number}\b")


def _names(message: str, fact: object) -> bool:
    return bool(fact.search(message)) if isinstance(fact, re.Pattern) else str(fact) in message
