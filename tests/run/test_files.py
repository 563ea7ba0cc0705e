"""Files are whole or not there, and only files are replaced."""

import os

import pytest

from utils.errors import InputError
from utils.files import first_free, write_text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_replaced(make, tmp_path):
    make(tmp_path / "there")
    with pytest.raises(InputError, match="there: is there and no regular file"):
        write_text(tmp_path / "there", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not (tmp_path / "there").is_file()


def test_a_device_stays_one_also_behind_a_link(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    with pytest.raises(InputError, match="no regular file"):
        write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_char_device()


def test_the_first_name_that_is_free(tmp_path):
    for n in (1, 2, 4):
        (tmp_path / str(n)).touch()
    assert first_free(lambda n: tmp_path / str(n)) == tmp_path / "3"
