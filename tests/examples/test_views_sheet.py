"""examples/views.py writes a sheet of views."""

from PIL import Image

from examples import views
from moco.views.rows import VIEWS
from tests.refusals import line_with, refusal


def test_sheet_has_a_row_for_each_view(tmp_path, capsys):
    views.main(["--output", str(tmp_path / "views.png"), "--draws", "2"])
    line_with(capsys.readouterr().out, tmp_path / "views.png", len(VIEWS), 2)
    with Image.open(tmp_path / "views.png") as picture:
        width, height = picture.size
    assert height > 1.5 * width  # eight rows of three
    refusal(lambda: views.main(["--output", str(tmp_path / "absent" / "views.png")]), tmp_path / "absent")
