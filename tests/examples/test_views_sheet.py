"""The sheet of views is written by its command."""

import pytest
from PIL import Image

from examples import views
from utils.errors import InputError


def test_the_sheet_has_a_row_for_each_view(tmp_path, capsys):
    views.main(["--output", str(tmp_path / "views.png"), "--draws", "2"])
    assert "8 views, 2 draws of each" in capsys.readouterr().out
    with Image.open(tmp_path / "views.png") as picture:
        width, height = picture.size
    assert height > 1.5 * width  # eight rows of three
    with pytest.raises(InputError, match="absent: no such folder"):
        views.main(["--output", str(tmp_path / "absent" / "views.png")])
