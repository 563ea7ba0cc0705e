"""The tested library versions agree with the supported ranges in the requirements files."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import ROOT


def read_requirements(file: Path) -> dict[str, Requirement]:
    """Return the requirements of a file by name, without comments and -r lines."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return {
        requirement.name: requirement
        for requirement in map(Requirement, (line for line in lines if line and line[0] != "-"))
    }


SUPPORTED = {
    name: requirement
    for file in ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt")
    for name, requirement in read_requirements(ROOT / file).items()
}
OLDEST = read_requirements(ROOT / "tests" / "versions" / "oldest.txt")
TOOLS = {"ruff", "nox"}  # development commands that the project does not import


@pytest.mark.parametrize("name", sorted(SUPPORTED.keys() - TOOLS))
def test_oldest_tested_version_is_lowest_supported(name):
    tested = {package: next(iter(pin.specifier)).version for package, pin in OLDEST.items()}
    (lowest,) = [bound.version for bound in SUPPORTED[name].specifier if bound.operator in (">=", "==")]
    assert Version(tested[name]) == Version(lowest)


@pytest.mark.parametrize("versions", ["oldest", "middle"])
def test_version_sets_are_complete_and_supported(versions):
    pins = read_requirements(ROOT / "tests" / "versions" / f"{versions}.txt")
    assert pins.keys() == SUPPORTED.keys() - TOOLS
    for name, pin in pins.items():
        assert next(iter(pin.specifier)).version in SUPPORTED[name].specifier
