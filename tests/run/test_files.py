"""Files are written completely or not at all, and only regular files are replaced."""

import os

import pytest

from tests.refusals import refusal
from utils.files import unused_name, write_atomically, write_text


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


@pytest.mark.parametrize("links", [True, False])
def test_file_exists_while_it_is_replaced(links, tmp_path, monkeypatch):
    """This holds on a file system without links as well."""
    path, backup = tmp_path / "last", tmp_path / "previous"
    path.write_text("1")
    backup.write_text("0")
    replace, seen = os.replace, []

    def checked_replace(source, target):
        replace(source, target)
        seen.append(path.read_text())

    def refused_link(source, target):
        raise OSError("not supported")

    monkeypatch.setattr(os, "replace", checked_replace)
    if not links:
        monkeypatch.setattr(os, "link", refused_link)
    write_atomically(path, lambda file: file.write(b"2"), backup)
    assert seen == ["1", "2"] and backup.read_text() == "1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last", "previous"]


def test_backup_that_is_the_same_file_is_replaced(tmp_path):
    """A process was killed after it had linked the backup and before it replaced the file."""
    path, backup = tmp_path / "last", tmp_path / "previous"
    path.write_text("1")
    os.link(path, backup)
    write_atomically(path, lambda file: file.write(b"2"), backup)
    assert (path.read_text(), backup.read_text()) == ("2", "1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last", "previous"]
