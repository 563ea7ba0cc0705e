"""Commands, make targets, links and files in the README, the pages in docs/ and the docstrings of scripts are valid."""

import re
import shlex
from pathlib import Path

import pytest

import main_lincls_imba
import main_moco_supcon_imba
import target_generation
from benchmarks import bench_targets
from benchmarks.gpu import __main__ as gpu
from benchmarks.many_classes import __main__ as many_classes
from benchmarks.many_classes import assignment, real_sizes
from examples import cross_entropy, demo, figure1, pixels
from examples.results import __main__ as results
from imagenet_inat.predict import __main__ as predict
from imagenet_inat.splits import __main__ as splits
from moco.export import __main__ as export
from tests import ROOT
from tests.processes import run
from utils.report import __main__ as report

MODULES = {
    "main_moco_supcon_imba.py": main_moco_supcon_imba,
    "main_lincls_imba.py": main_lincls_imba,
    "target_generation.py": target_generation,
    "examples.cross_entropy": cross_entropy,
    "examples.demo": demo,
    "examples.results": results,
    "examples.pixels": pixels,
    "examples.figure1": figure1,
    "moco.export": export,
    "imagenet_inat.predict": predict,
    "imagenet_inat.splits": splits,
    "utils.report": report,
    "benchmarks.bench_targets": bench_targets,
    "benchmarks.gpu": gpu,
    "benchmarks.many_classes": many_classes,
    "benchmarks.many_classes.assignment": assignment,
    "benchmarks.many_classes.real_sizes": real_sizes,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {name: module.get_args_parser for name, module in MODULES.items()}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)  # language, text
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands() -> list[str]:
    """Return the lines of pages and docstrings that call one of our scripts, continuation lines joined."""
    texts = [page.read_text() for page in PAGES]
    texts += [module.__doc__ for module in MODULES.values()]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(OMP_NUM_THREADS=1 )?(python|torchrun) ", line)]


def test_every_script_is_shown_in_a_command():
    assert {name for name in PARSERS for line in commands() if name in line} == set(PARSERS)


@pytest.mark.parametrize("command", commands())
def test_shown_command_parses(command):
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("@LISTS/")]  # made by `make`
    script = next(word for word in words if word in PARSERS)
    PARSERS[script]().parse_args(words[words.index(script) + 1 :])


def test_help_of_package_shows_how_to_call_it():
    help_text = run(["-m", "imagenet_inat.splits", "--help"]).stdout
    assert help_text.startswith("usage: python -m imagenet_inat.splits ")


def test_commands_of_demo_parse():
    stage_1 = f"{demo.STAGE_1} {demo.METHODS['TSC']}".format(epochs=1, seed=0, folder="f")
    for command in (stage_1, demo.STAGE_2.format(seed=0), demo.REPORT.format(folder="f").removeprefix("-m ")):
        script, *flags = shlex.split(command)
        PARSERS[script]().parse_args(flags)


def test_make_targets_exist():
    """Checks the targets in code: at the start of a line of a fenced block or of an inline span."""
    code = [span for page in PAGES for span in re.findall(r"`(make [a-z-]+)", page.read_text())]
    code += [line for page in PAGES for _, block in FENCED.findall(page.read_text()) for line in block.splitlines()]
    named = {word for line in code for word in re.findall(r"^make ([a-z-]+)", line)}
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


@each_page
def test_links_within_project_resolve(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert target.startswith("https://") or linked.exists(), target
        assert target.startswith("https://") or not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_anchors_are_headings(tmp_path):
    (tmp_path / "page.md").write_text("# One: `two`, 3-4\n```bash\n# no heading\n```\ntext\n### Five?\n")
    assert anchors(tmp_path / "page.md") == {"one-two-3-4", "five"}


def test_index_links_to_every_page():
    """The README links to the index. Pages of studies that a user has run need no link."""
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "README.md").read_text())
    found = {(ROOT / "docs" / name).resolve() for name in linked}
    assert not {page for page in PAGES if page.name != "README.md" and not page.match("results_*.md")} - found
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def paths_in_file_map(text: str) -> list[Path]:
    """Return the paths that a map of the files names. Indented names lie in the folder above them."""
    folder, paths = ROOT, []
    for line in text.splitlines():
        named = re.findall(r"[\w/]+\.py|\w+/(?=\s)", line)
        if named and not line.startswith(" "):
            folder = ROOT / named[0] if named[0].endswith("/") else ROOT
            paths += [ROOT / name for name in named]
        else:
            paths += [folder / name for name in named]
    return paths


def test_paths_in_file_map_follow_indentation():
    text = "a.py  first   b/c.py   second\nd/            the third\n  e.py  f/  in it\n"
    assert paths_in_file_map(text) == [ROOT / name for name in ("a.py", "b/c.py", "d", "d/e.py", "d/f")]


@each_page
def test_files_that_a_page_names_exist(page):
    """Checks inline paths in the project's folders, and file maps, whose paths may be relative to tests/."""
    text = page.read_text()
    maps = [block for language, block in FENCED.findall(text) if not language and re.match(r"[\w/]+(\.py|/)\s", block)]
    paths = [path for block in maps for path in paths_in_file_map(block)]
    spans = re.findall(r"`([\w.-]+/[\w./-]*)`", FENCED.sub("", text))
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} | {"recipes"}
    paths += [ROOT / span for span in spans if span.endswith((".py", ".txt", "/")) and span.split("/")[0] in folders]
    assert not [path for path in paths if not path.exists() and not (ROOT / "tests" / path.name).exists()]
