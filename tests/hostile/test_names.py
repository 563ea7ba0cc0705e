"""Names and texts of files act on no terminal: they are spelled."""

import pytest

from utils import errors
from utils.distributed import say

# Colours, the start of the line, a bell, right to left, an invisible letter, half a letter of a file name.
TEXT = "\x1b[31mred\r\x07\u202egnp.\u200bx\udcff\x9b2J"
SHOWN = r"\x1b[31mred\r\x07\u202egnp.\u200bx\udcff\x9b2J"


def test_what_acts_on_a_terminal_is_spelled_and_letters_stay():
    assert errors.printable(TEXT) == SHOWN
    assert errors.printable("Tür − ρ ± 日本\n\t|") == "Tür − ρ ± 日本\n\t|"


def test_a_line_of_a_run_spells_the_names_in_it(capsys):
    say(TEXT)
    errors.tell(TEXT)
    said = capsys.readouterr()
    assert said.out == said.err == SHOWN + "\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.InputError(f"file {TEXT}\nerror: none"), rf"file {SHOWN}\nerror: none"),
        (FileNotFoundError(2, "No such file", f"a\n{TEXT}"), rf"a\n{SHOWN}: No such file"),
    ],
)
def test_the_line_of_a_mistake_is_one_line_and_spells_the_names_in_it(error, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit):
        errors.run(main)
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_value_is_shown_briefly_however_large_or_deep():
    laughs = []
    for _ in range(60):
        laughs = [laughs, laughs]  # 2^60 brackets
    values = [laughs, 10**5000, "x" * 10**6, {"\x1b": laughs}]
    assert all(len(errors.brief(value)) <= 80 for value in values)
    assert errors.brief("a\x1b") == r"'a\x1b'"
