"""Write the pages of a report, HTML and Markdown, from the same sections."""

import base64
from html import escape
from pathlib import Path
from typing import NamedTuple

from utils.errors import printable
from utils.files import check_regular, check_writable_folder, write_text
from utils.measure.results import format_markdown_table
from utils.report.style import Picture

LONG = 40  # cells with more characters may wrap
# The page may load nothing and run no script, whatever an argument or a folder is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --quiet: #57606a; --page: #ffffff; --line: #d0d7de; --row: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --quiet: #9aa4af; --page: #15181c; --line: #343b44; --row: #1d2126 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1160px; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: .5rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 0 }
p { margin: .4rem 0; max-width: 48rem }
p, li, figcaption { overflow-wrap: anywhere }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--quiet); font-weight: 600 }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page) }
.word { text-align: left }
.long { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 14rem; max-width: 26rem }
@media (max-width: 600px) { th, td { padding: .25rem .4rem; font-size: .85rem } }
tbody tr:nth-child(even) { background: var(--row) }
summary { margin: .8rem 0; color: var(--quiet); cursor: pointer }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0; max-width: 34rem }
figure:only-child { max-width: 48rem }
figure img { display: block; width: 100%; height: auto }
figcaption { color: var(--quiet); font-size: .9rem }
"""


class Table(NamedTuple):
    """A table; the first `text_columns` columns contain text, the others numbers. title: a line above the table."""

    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    title: str = ""


class Section(NamedTuple):
    """A heading, paragraphs of plain text, tables and pictures. folded: tables that open by a click on their title."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: tuple[Table, ...] = ()


def report_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the pages report.html and report.md, and of the folder of the pictures."""
    return folder / "report.html", folder / "report.md", folder / "report_figures"


def check_report_folder(folder: Path) -> None:
    """Raise InputError if a report cannot be written to this folder, before anything is computed."""
    page, text, figures = report_files(folder)
    for path in (folder, figures):
        check_writable_folder(path, "report folder", "choose another --output")
    for path in (page, text):
        check_regular(path)


def write_report(folder: Path, title: str, sections: list[Section]) -> tuple[Path, Path]:
    """Write report.html, and report.md with its pictures in report_figures/; return the paths of both pages."""
    page, text, figures = report_files(folder)
    figures.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for picture in section.pictures:
            write_text(figures / f"{picture.name}.svg", picture.light)
    write_text(page, printable(format_html_page(title, sections)))
    write_text(text, printable(format_markdown_page(title, sections, figures.name)))
    return page, text


def format_markdown_page(title: str, sections: list[Section], figures: str) -> str:
    """Return the page in Markdown. figures: the folder of the pictures, relative to the page."""
    return f"# {title}\n\n" + "\n".join(format_markdown_section(section, figures) for section in sections)


def format_markdown_section(section: Section, figures: str = "") -> str:
    parts = [f"## {section.title}", *section.text]
    for table in section.tables:
        parts += [f"### {table.title}"] if table.title else []
        parts.append(format_markdown_table(table.header, table.rows, table.text_columns))
    for picture in section.pictures:
        parts.append(f"![{picture.caption}]({figures}/{picture.name}.svg)\n\n{picture.caption}")
    for table in section.folded:
        # Markdown needs blank lines around a table here. Cells are escaped, so that no value can close the fold.
        header, *rows = [[escape(cell, quote=False) for cell in line] for line in (table.header, *table.rows)]
        parts += [
            f"<details>\n<summary>{escape(table.title)}</summary>",
            format_markdown_table(header, rows, table.text_columns),
        ]
        parts.append("</details>")
    return "\n\n".join(parts) + "\n"


def format_html_page(title: str, sections: list[Section]) -> str:
    body = "\n".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [*(f"<p>{_with_code(text)}</p>" for text in section.text), *map(_table, section.tables)]
    if section.pictures:
        parts.append('<div class="pictures">\n' + "\n".join(map(_picture, section.pictures)) + "\n</div>")
    parts += map(_folded, section.folded)
    return "\n".join([*parts, "</section>"])


def _with_code(text: str) -> str:
    """Return escaped HTML text, with `...` as code, as in Markdown."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def _table(table: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        kinds = [
            "" if i >= table.text_columns else "long" if len(cell) > LONG else "word" for i, cell in enumerate(cells)
        ]
        return "".join(f'<{tag} class="{k}">{_with_code(c)}</{tag}>' for k, c in zip(kinds, cells, strict=True))

    rows = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in table.rows)
    head = f"<thead><tr>{line(table.header, 'th')}</tr></thead>"
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    return f'{title}<div class="scroll"><table>\n{head}\n<tbody>\n{rows}\n</tbody></table></div>'


def _folded(table: Table) -> str:
    content = _table(table._replace(title=""))
    return f"<details>\n<summary>{escape(table.title)}</summary>\n{content}\n</details>"


def _picture(picture: Picture) -> str:
    light, dark = (base64.b64encode(svg.encode()).decode() for svg in (picture.light, picture.dark))
    data, caption = "data:image/svg+xml;base64,", escape(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{data}{dark}">'
        f'<img src="{data}{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )
