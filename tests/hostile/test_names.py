"""Control characters in names and texts of files are escaped before they are printed."""

import pytest

from utils import errors
from utils.distributed import log

# Colours, a carriage return, a bell, a right-to-left override, a zero-width space, a lone surrogate.
TEXT = "\x1b[31mred\r\x07\u202egnp.\u200bx\udcff\x9b2J"
ESCAPED = r"\x1b[31mred\r\x07\u202egnp.\u200bx\udcff\x9b2J"


def test_control_characters_are_escaped_and_letters_are_kept():
    assert errors.printable(TEXT) == ESCAPED
    assert errors.printable("Tür − ρ ± 日本\n\t|") == "Tür − ρ ± 日本\n\t|"


def test_log_line_escapes_names(capsys):
    log(TEXT)
    errors.print_stderr(TEXT)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ESCAPED + "\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.InputError(f"file {TEXT}\nerror: none"), rf"file {ESCAPED}\nerror: none"),
        (FileNotFoundError(2, "No such file", f"a\n{TEXT}"), rf"a\n{ESCAPED}: No such file"),
    ],
)
def test_error_is_one_line_with_escaped_names(error, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit):
        errors.run(main)
    assert capsys.readouterr().err == f"error: {line}\n"


def test_large_and_deep_values_are_shortened():
    nested = []
    for _ in range(60):
        nested = [nested, nested]  # 2^60 brackets
    values = [nested, 10**5000, "x" * 10**6, {"\x1b": nested}]
    assert all(len(errors.short_repr(value)) <= 80 for value in values)
    assert errors.short_repr("a\x1b") == r"'a\x1b'"
