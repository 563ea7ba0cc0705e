"""The pages name every entry of the registries, so that a new entry is not left undocumented."""

from pathlib import Path

import pytest

from moco.heads import HEADS
from moco.methods import METHODS
from moco.views.rows import VIEWS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("flag", "page", "names"), [("--head", "heads.md", HEADS), ("--views", "views.md", VIEWS)])
def test_every_entry_has_a_row_in_its_table(flag, page, names):
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    missing = [name for name in names if not any(row.startswith(f"| `{name}`") for row in rows)]
    assert not missing, f"docs/{page}: no row for {flag} {', '.join(missing)}"


def test_every_method_is_named_on_a_page():
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    missing = [name for name in METHODS if f"--contrast {name}" not in text]
    assert not missing, f"docs/: no page names --contrast {', '.join(missing)}"
