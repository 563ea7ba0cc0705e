"""The fixture that checks one row of a table of bad inputs."""

from collections.abc import Callable

import pytest

from tests.hostile.table import Reader, contents
from tests.refusals import assert_names
from utils.errors import InputError


@pytest.fixture
def check(tmp_path, monkeypatch, request, capsys) -> Callable[[Reader, object, str | tuple], None]:
    """Return a check: a bad input exits with code 2, prints one line that names the facts, and writes nothing."""

    def check(reader: Reader, bad: object, facts: str | tuple) -> None:
        monkeypatch.chdir(tmp_path)
        read = reader(bad, tmp_path, request.getfixturevalue)
        before = contents(tmp_path)
        capsys.readouterr()
        with pytest.raises((InputError, SystemExit)) as end:
            read()
        message = f"error: {end.value}\n"
        if isinstance(end.value, SystemExit):
            assert end.value.code == 2
            message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert_names(message, *(facts.split() if isinstance(facts, str) else facts))
        assert contents(tmp_path) == before

    return check
