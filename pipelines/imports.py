"""Which modules a file imports, directly or not, read from sources: nothing is run.

A module that is loaded by name counts where the name is spelled: all of a package for
``import_module(f"a.package.{name}")``. Imports for type checkers only do nothing when the code runs, and do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).parent.parent

Find = Callable[[str], Path | None]
"""The file of a dotted module, or None if it is none of those that count."""


def closure(start: Mapping[str, Path], find: Find) -> dict[str, Path]:
    """The modules of ``start`` and all that they import, by name, as far as ``find`` knows them.

    In alphabetical order.
    """
    found = dict(start)
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        for module in imported(found[name], name):
            path = find(module)
            if path is not None and module not in found:
                found[module] = path
                waiting.append(module)
    return dict(sorted(found.items()))


def reachable(module: str) -> dict[str, Path]:
    """The modules of ``pipelines`` that a module of it can reach, itself among them."""
    path = file_of(module)
    if path is None:
        raise ValueError(f"{module} is no module of the project")
    return closure({module: path}, file_of)


@cache
def file_of(module: str) -> Path | None:
    """The file of a module or package of ``pipelines``; of no other."""
    if module.partition(".")[0] != "pipelines":
        return None
    place = ROOT.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def imported(path: Path, module: str) -> frozenset[str]:
    """The dotted names that a file may import, those above them included.

    Of a file that does not parse, none: it does not run either.
    """
    return _imported(path, module, path.stat().st_mtime_ns)


_PARSER = Lock()


def syntax_tree(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises what ``ast.parse`` does, and OSError."""
    # One at a time: with two threads in it, CPython 3.11 fails where its garbage collector runs Python code
    # (gh-106905).
    with _PARSER:
        return ast.parse(path.read_bytes(), str(path))


@cache
def _imported(path: Path, module: str, _written: int) -> frozenset[str]:
    try:
        tree = syntax_tree(path)
    except (SyntaxError, ValueError):
        return frozenset()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set[str]()
    for name in _names(tree, package):
        parts = name.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return frozenset(found)


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield base
            # A name may be a module of its own.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            yield from _by_name(node)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree but for what stands under ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield from _run(child)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The dotted name that an ``import from`` starts at."""
    if not node.level:
        return node.module or ""
    above = package.split(".")
    above = above[: len(above) - node.level + 1]
    return ".".join([*above, *((node.module,) if node.module else ())])


def _by_name(node: ast.Call) -> Iterator[str]:
    """All modules of the package of which ``import_module(f"a.package.{name}")`` loads one."""
    called, name = node.func, node.args[0]
    if not (isinstance(called, ast.Name) and called.id == "import_module" and isinstance(name, ast.JoinedStr)):
        return
    first = name.values[0]
    if len(name.values) != 2 or not isinstance(first, ast.Constant):
        return
    package = str(first.value).removesuffix(".")
    path = file_of(package)
    if path is not None and path.name == "__init__.py":
        yield from (f"{package}.{file.stem}" for file in sorted(path.parent.glob("*.py")) if file.stem != "__init__")
