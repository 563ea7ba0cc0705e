"""Files are written completely or not at all, and only regular files are replaced."""

import os

import pytest

from tests.refusals import refusal
from utils.files import unused_name, write_text


@pytest.mark.parametrize("create", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_replaced(create, tmp_path):
    create(tmp_path / "there")
    refusal(lambda: write_text(tmp_path / "there", "x"), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not (tmp_path / "there").is_file()


def test_link_to_device_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    refusal(lambda: write_text(tmp_path / "link", "x"), tmp_path / "link")
    assert (tmp_path / "link").is_char_device()


def test_unused_name_returns_first_free_name(tmp_path):
    for n in (1, 2, 4):
        (tmp_path / str(n)).touch()
    assert unused_name(lambda n: tmp_path / str(n)) == tmp_path / "3"
