"""An --output that python -m utils.report cannot write is refused before the runs are read."""

import pytest

from tests.refusals import refusal
from utils.report import __main__ as report


@pytest.mark.parametrize("name", ["out", "out/report_figures"])
def test_file_in_place_of_a_folder_is_refused(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    refusal(lambda: report.main(["no_run", "--output", str(tmp_path / "out")]), path)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_folder_in_place_of_a_page_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    refusal(lambda: report.main(["no_run", "--output", str(tmp_path)]), tmp_path / name)
