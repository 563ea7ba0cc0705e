"""The versions that are promised are the ones that are tested."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import ROOT


def requirements(file: Path) -> dict[str, Requirement]:
    """The requirements of a file by name, without comments and -r."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return {wanted.name: wanted for wanted in map(Requirement, (line for line in lines if line and line[0] != "-"))}


PROMISED = {
    name: wanted
    for file in ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt")
    for name, wanted in requirements(ROOT / file).items()
}
OLDEST = requirements(ROOT / "tests" / "versions" / "oldest.txt")
TOOLS = {"ruff", "nox"}  # they check and start, nothing of the project imports them


@pytest.mark.parametrize("name", sorted(PROMISED.keys() - TOOLS))
def test_the_oldest_version_that_is_tested_is_the_lowest_promised(name):
    tested = {package: next(iter(pin.specifier)).version for package, pin in OLDEST.items()}
    (lowest,) = [bound.version for bound in PROMISED[name].specifier if bound.operator in (">=", "==")]
    assert Version(tested[name]) == Version(lowest)


@pytest.mark.parametrize("versions", ["oldest", "middle"])
def test_each_set_of_versions_is_whole_and_within_the_promise(versions):
    pins = requirements(ROOT / "tests" / "versions" / f"{versions}.txt")
    assert pins.keys() == PROMISED.keys() - TOOLS
    for name, pin in pins.items():
        assert next(iter(pin.specifier)).version in PROMISED[name].specifier
