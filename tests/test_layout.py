"""Imports point one way, between rooms and between files, and no room or file outgrows a reader."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

from tests import ROOT

# From the ground up: a room uses those before it, and itself without a circle.
ROOMS = (
    *("utils", "utils.rendezvous", "utils.measure", "utils.run", "utils.report"),
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
    *("imagenet_inat.lists", "imagenet_inat.sets", "imagenet_inat", "imagenet_inat.splits"),
    *("", "examples", "examples.results", "benchmarks", "benchmarks.many_classes", "benchmarks.gpu"),
)
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES = 250, 50, 13


def files(*more: str) -> list[Path]:
    """The project's Python files; more: other folders."""
    rooms = dict.fromkeys([*(room.split(".")[0] for room in ROOMS if room), *more])
    return [*ROOT.glob("*.py"), *(file for room in rooms for file in (ROOT / room).rglob("*.py"))]


def modules() -> dict[str, ast.Module]:
    """By their names; a package is its __init__."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files()}
    return {name.removesuffix(".__init__"): ast.parse(file.read_text()) for name, file in names.items()}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Those of the modules `known` that a module imports, wherever it does."""
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if name in known else node.module for name in inner}
    return named & known


def room_of(module: str, found: dict[str, ast.Module]) -> int:
    return ROOMS.index(module if module in ROOMS else module.rpartition(".")[0])


def test_imports_point_one_way_and_in_no_circle():
    found = modules()
    graph = {name: imports(tree, set(found)) for name, tree in found.items()}
    upward = [f"{a} imports {b}" for a, used in graph.items() for b in used if room_of(b, found) > room_of(a, found)]
    assert not upward
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_no_file_no_function_and_no_room_outgrows_a_reader():
    trees = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in files("tests")}
    assert not {str(name): lines for name in trees if (lines := (ROOT / name).read_text().count("\n")) > MOST_LINES}
    functions = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if is_long(node)]
    assert not [f"{name}: {node.name}" for name, node in functions]
    rooms = Counter(name.parent for name in trees)
    assert not {str(room): files for room, files in rooms.items() if files > MOST_FILES}


def is_long(node: ast.AST) -> bool:
    """Whether it is a function of too many lines, and not one that lists flags."""
    if not isinstance(node, ast.FunctionDef) or node.name.endswith(("arguments", "args_parser")):
        return False
    return node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
