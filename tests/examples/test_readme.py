"""Every command line that README, its pages and the scripts' docstrings show is accepted as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main_lincls_imba
import main_moco_supcon_imba
import target_generation
from benchmarks import bench_targets, real_sizes
from benchmarks.gpu import __main__ as gpu
from benchmarks.many_classes import __main__ as many_classes
from benchmarks.many_classes import assignment
from examples import cross_entropy, demo, figure1, pixels
from examples.results import __main__ as results
from imagenet_inat.splits import __main__ as splits
from moco.export import __main__ as export
from tests import ROOT
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
    "imagenet_inat.splits": splits,
    "utils.report": report,
    "benchmarks.bench_targets": bench_targets,
    "benchmarks.gpu": gpu,
    "benchmarks.many_classes": many_classes,
    "benchmarks.many_classes.assignment": assignment,
    "benchmarks.real_sizes": real_sizes,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {name: module.get_args_parser for name, module in MODULES.items()}


def commands() -> list[str]:
    """Lines of README, its pages and docstrings that call one of our scripts, continuation lines joined."""
    texts = [page.read_text() for page in PAGES]
    texts += [module.__doc__ for module in MODULES.values()]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(OMP_NUM_THREADS=1 )?(python|torchrun) ", line)]


def test_the_commands_are_found():
    assert len(commands()) > 12
    assert {name for name in PARSERS for line in commands() if name in line} == set(PARSERS)


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_parses(command):
    words = shlex.split(command, comments=True)
    script = next(word for word in words if word in PARSERS)
    PARSERS[script]().parse_args(words[words.index(script) + 1 :])


def test_a_package_is_called_as_it_is_typed():
    command = [sys.executable, "-m", "imagenet_inat.splits", "--help"]
    help_text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert help_text.startswith("usage: python -m imagenet_inat.splits ")


def test_the_demos_own_commands_parse():
    stage_1 = f"{demo.STAGE_1} {demo.METHODS['TSC']}".format(epochs=1, seed=0, folder="f")
    for command in (stage_1, demo.STAGE_2.format(seed=0), demo.REPORT.format(folder="f").removeprefix("-m ")):
        script, *flags = shlex.split(command)
        PARSERS[script]().parse_args(flags)


def test_make_targets_that_readme_and_the_page_on_speed_name_exist():
    text = "\n".join((ROOT / page).read_text() for page in ("README.md", "docs/speed.md"))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "test-oldest", "gpu", "results", "bench"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert target.startswith("https://") or linked.exists(), target
        assert target.startswith("https://") or not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What a link may have after its #: the headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_links_that_are_tested_are_found():
    assert anchors(ROOT / "docs" / "targets.md") >= {"targets", "how-good-is-a-file"}
    assert any("](#" in page.read_text() for page in PAGES) and any(".md#" in page.read_text() for page in PAGES)


def test_the_index_has_every_page_and_readme_leads_to_it():
    """But for the pages of other studies, which a user may have run."""
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "README.md").read_text())
    found = {(ROOT / "docs" / name).resolve() for name in linked}
    assert not {page for page in PAGES if page.name != "README.md" and not page.match("results_*.md")} - found
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/changing.md"])
def test_paths_that_a_map_of_the_files_names_exist(page):
    """Indented names lie in the folder above them."""
    layout = (ROOT / page).read_text().split("## Where things are")[1].split("```")[1]
    folder, paths = ROOT, []
    for line in layout.splitlines():
        named = re.findall(r"[\w/]+\.py|\w+/(?=\s)", line)
        if named and not line.startswith(" "):
            folder = ROOT / named[0] if named[0].endswith("/") else ROOT
            paths += [ROOT / name for name in named]
        else:
            paths += [folder / name for name in named]
    assert len(paths) > 30
    assert not [path for path in paths if not path.exists() and not (ROOT / "tests" / path.name).exists()]
