"""Imports point one way, between packages and between files. Files, functions and folders stay small."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

from tests import ROOT

# A package imports only packages before it in this list. Within a package, imports have no cycle.
PACKAGES = (
    *("utils", "utils.distributed", "utils.cli", "utils.measure", "utils.run", "utils.report"),
    *(
        "moco.targets",
        "moco.losses",
        "moco.views",
        "moco.encoders",
        "moco",
        "moco.methods",
        "moco.heads",
        "moco.export",
    ),
    *("imagenet_inat.lists", "imagenet_inat.sets", "imagenet_inat", "imagenet_inat.splits", "imagenet_inat.predict"),
    *("", "examples", "examples.results", "benchmarks", "benchmarks.many_classes", "benchmarks.gpu"),
)
MOST_LINES, MOST_LINES_PER_FUNCTION, MOST_FILES = 250, 50, 13


def files(*other_folders: str) -> list[Path]:
    """Return the project's Python files and those in these other folders."""
    folders = dict.fromkeys([*(folder.split(".")[0] for folder in PACKAGES if folder), *other_folders])
    return [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]


def modules() -> dict[str, ast.Module]:
    """Return the parsed modules by name. A package's name stands for its __init__."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files()}
    return {name.removesuffix(".__init__"): ast.parse(file.read_text()) for name, file in names.items()}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Return which of the modules `known` a module imports, at any level."""
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if name in known else node.module for name in inner}
    return named & known


def package_index(module: str, found: dict[str, ast.Module]) -> int:
    return PACKAGES.index(module if module in PACKAGES else module.rpartition(".")[0])


def test_imports_point_one_way_and_have_no_cycle():
    found = modules()
    graph = {name: imports(tree, set(found)) for name, tree in found.items()}
    upward = [
        f"{a} imports {b}"
        for a, used in graph.items()
        for b in used
        if package_index(b, found) > package_index(a, found)
    ]
    assert not upward
    TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


def test_files_functions_and_folders_stay_small():
    trees = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in files("tests")}
    assert not {str(name): lines for name in trees if (lines := (ROOT / name).read_text().count("\n")) > MOST_LINES}
    functions = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if is_long(node)]
    assert not [f"{name}: {node.name}" for name, node in functions]
    folders = Counter(name.parent for name in trees)
    assert not {str(folder): files for folder, files in folders.items() if files > MOST_FILES}


def is_long(node: ast.AST) -> bool:
    """Return whether the node is a function with too many lines. Functions that list flags are exempt."""
    if not isinstance(node, ast.FunctionDef) or node.name.endswith(("arguments", "args_parser")):
        return False
    return node.end_lineno - node.lineno + 1 > MOST_LINES_PER_FUNCTION
