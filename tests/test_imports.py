"""Modules import each other in one direction only."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import qmpsnap
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(qmpsnap.__file__).parent


def modules() -> dict[str, ast.Module]:
    """Each module of the package, by its name, with its syntax tree."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each module imports, at run time or for a type checker only, anywhere in it."""
    graph = {}
    for module, tree in trees.items():
        names: set[str] = set()
        for node in statements(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        graph[module] = (names & trees.keys()) - {module}
    return graph


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement, at any depth; an expression has none."""
    rest: list[ast.AST] = [tree]
    while rest:
        node = rest.pop()
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers", "cases"):
            rest.extend(getattr(node, inner, ()))


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty when there is no circle."""
    rest = {module: set(names) for module, names in graph.items()}
    while leaves := [module for module, names in rest.items() if not names & rest.keys()]:
        for module in leaves:
            del rest[module]
    path = sorted(rest)[:1]
    while path:
        path.append(min(rest[path[-1]] & rest.keys()))
        if path[-1] in path[:-1]:
            return path[path.index(path[-1]) :]
    return []


def test_modules_import_each_other_in_no_circle() -> None:
    graph = imports(modules())
    del graph["qmpsnap"]  # it imports what it re-exports, when a name is first used
    assert circle(graph) == []


@each(
    ("sources", "expected"),
    [
        ({"a": "import b", "b": ""}, []),
        ({"a": "import b", "b": "from a import x"}, ["a", "b", "a"]),
        (
            {"a": "from p import b", "p": "", "p.b": "import c", "c": "from a import x"},
            ["a", "p.b", "c", "a"],
        ),
        ({"a": "if TYPE_CHECKING:\n    import b", "b": "def f():\n    import a"}, ["a", "b", "a"]),
    ],
)
def test_a_circle_is_found_also_in_type_checking_blocks_and_in_functions(
    sources: Mapping[str, str], expected: list[str]
) -> None:
    assert circle(imports({module: ast.parse(source) for module, source in sources.items()})) == expected
