"""Files are whole or not there, and only files are replaced."""

import os

import pytest

from tests.refusals import refusal
from utils.files import first_free, write_text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_replaced(make, tmp_path):
    make(tmp_path / "there")
    refusal(lambda: write_text(tmp_path / "there", "x"), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not (tmp_path / "there").is_file()


def test_a_device_stays_one_also_behind_a_link(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    refusal(lambda: write_text(tmp_path / "link", "x"), tmp_path / "link")
    assert (tmp_path / "link").is_char_device()


def test_the_first_name_that_is_free(tmp_path):
    for n in (1, 2, 4):
        (tmp_path / str(n)).touch()
    assert first_free(lambda n: tmp_path / str(n)) == tmp_path / "3"
