"""What can be counted of how the code reads; `make check` prints it.

``python -m tests.counts [folder]`` counts another checkout. Nothing fails on these figures: they show from one change
to the next whether the code stays easy to read. All are taken from the sources, so a tree has one table everywhere.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDERS = ("perennial", "pipelines", "serving", "embedded", "plugins", "dags", "compose", "benchmarks", "tests")
LIVE = ("perennial", "pipelines", "serving", "embedded", "plugins", "dags")
"""Where a step can be named: all that runs, but for the steps' own files."""
WIDTH = 120
LONG = 250
"""Lines of a module from which on one looks for its seam."""
WALKED = ("pipelines.steps.drift", {"work": "run", "run": "as_of"})
"""Module, and by function the argument that ``walk`` follows: the first function that is there."""


@dataclass(frozen=True)
class Counted:
    """Counts of one file, or of many."""

    lines: int = 0
    comments: int = 0
    wide: int = 0
    conditionals: int = 0
    chained: int = 0
    tuples: int = 0
    loose: int = 0
    long_modules: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(*(own + more for own, more in zip(vars(self).values(), vars(other).values(), strict=True)))

    def row(self) -> tuple[str, ...]:
        """The cells of a table: rates are per 1,000 lines that are not empty."""
        return (
            f"{self.lines:,}",
            f"{self._rate(self.conditionals):.1f}",
            str(self.chained),
            f"{self._rate(self.tuples):.1f}",
            str(self.loose),
            str(self.wide),
            f"{self._rate(self.comments) / 10:.1f}%",
            str(self.long_modules),
        )

    def _rate(self, count: int) -> float:
        return 1000 * count / max(self.lines, 1)


HEAD = (
    "",
    "lines",
    "x if c else y /1,000",
    "chained",
    "a, b = x, y /1,000",
    "dict[str, Any]",
    f"lines over {WIDTH}",
    "comments",
    f"modules over {LONG}",
)


def main() -> None:
    """Print the counts of one checkout: the one that this file is in, or the one that was named."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    sys.stdout.write("\n".join(report(root)) + "\n")


def report(root: Path) -> list[str]:
    """The lines that are printed."""
    rows = [HEAD]
    for folder in FOLDERS:
        counted = sum((count(path.read_text(encoding="utf-8")) for path in modules(root / folder)), Counted())
        rows.append((folder, *counted.row()))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    names, files = step_names(root)
    rooms = walk(root)
    returns = len(rooms) - len(set(rooms))
    return [
        *table,
        f"strings that name a step, outside of pipelines/steps: {names} in {files} files",
        f"files in pipelines/drift: {len(modules(root / 'pipelines' / 'drift'))}",
        f"as_of through the drift step: {len(rooms)} stays, {returns} returns, {rooms.count('ledger')} in the ledger",
        f"  {' > '.join(rooms)}",
    ]


def modules(folder: Path) -> list[Path]:
    """Every Python file under ``folder``."""
    return sorted(folder.rglob("*.py"))


def count(text: str) -> Counted:
    """What stands in one module."""
    lines = text.splitlines()
    nodes = list(ast.walk(ast.parse(text)))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return Counted(
        lines=sum(bool(line.strip()) for line in lines),
        comments=sum(token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens),
        wide=sum(len(line) > WIDTH for line in lines),
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        chained=sum(isinstance(node, ast.IfExp) and isinstance(node.orelse, ast.IfExp) for node in nodes),
        tuples=sum(_assigns_tuple(node) for node in nodes),
        loose=sum(isinstance(node, ast.Subscript) and _is_loose(node) for node in nodes),
        long_modules=int(len(lines) > LONG),
    )


def _assigns_tuple(node: ast.AST) -> bool:
    """Whether it is two assignments on one line: ``a, b = x, y``. What unpacks the one value of a call is not."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def _is_loose(node: ast.Subscript) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "dict" and ast.unparse(node) == "dict[str, Any]"


def step_names(root: Path) -> tuple[int, int]:
    """How often a string in the live code is a step's name, and in how many files; ``steps`` itself is left out."""
    steps = root / "pipelines" / "steps"
    names = {path.stem for path in steps.glob("[a-z]*.py")}
    found = []
    for path in (path for folder in LIVE for path in modules(root / folder) if steps not in path.parents):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.append(sum(isinstance(node, ast.Constant) and node.value in names for node in ast.walk(tree)))
    return sum(found), sum(places > 0 for places in found)


# --- the way of one value ---------------------------------------------------------------------------


def walk(root: Path) -> list[str]:
    """The rooms that the drift step's ``as_of`` comes to, in order; a room is a folder or module of ``pipelines/``.

    The rule: from the step's own function on, in the order of the lines, every call that is handed the value is
    followed into the function that the imports name, each function once; after it one is back in the room that called.
    The value is handed on by its name, or inside of an object that was made with it and gives it out again as
    ``.as_of``. Two stays in one room on end are one.
    """
    stays: list[str] = []
    module, functions = WALKED
    tree = _tree(root, module)
    function = next(name for name in functions if tree is not None and _definition(tree, name) is not None)
    for room in _follow(root, module, function, functions[function], seen=set()):
        if not stays or stays[-1] != room:
            stays.append(room)
    return stays


def _follow(root: Path, module: str, function: str, parameter: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    """The rooms from one function on, its own first."""
    tree = _tree(root, module)
    body = None if tree is None else _definition(tree, function)
    if tree is None or body is None or (module, function) in seen:
        return
    seen.add((module, function))
    room = module.split(".")[1]
    yield room
    imports = dict(_imports(tree))
    carriers = _carriers(body, parameter)
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0)):
        target = _target(root, ast.unparse(call.func), module, imports)
        handed = None if target is None else _handed(root, call, target, carriers)
        if target is not None and handed is not None:
            yield from _follow(root, *target, handed, seen)
            yield room


def _carriers(body: ast.FunctionDef, parameter: str) -> set[str]:
    """The names in a function that are the value, or an object that was made with it."""
    carriers = {parameter}
    for node in ast.walk(body):
        if isinstance(node, ast.Assign):
            carriers |= {name for name, value in _assigned(node) if _carries(value, carriers)}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            makes = ast.unparse(node.value.func).rpartition(".")[2][:1].isupper()
            if makes and any(
                _carries(one, carriers) for one in [*node.value.args, *(key.value for key in node.value.keywords)]
            ):
                carriers.add(node.targets[0].id)
    return carriers


def _assigned(node: ast.Assign) -> list[tuple[str, ast.expr]]:
    """The names that an assignment gives, each with its own value."""
    target = node.targets[0]
    if isinstance(target, ast.Name):
        return [(target.id, node.value)]
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        pairs = zip(target.elts, node.value.elts, strict=True)
        return [(name.id, value) for name, value in pairs if isinstance(name, ast.Name)]
    return []


def _carries(value: ast.expr, carriers: set[str]) -> bool:
    if isinstance(value, ast.Attribute) and value.attr == "as_of":
        value = value.value
    return isinstance(value, ast.Name) and value.id in carriers


def _handed(root: Path, call: ast.Call, target: tuple[str, str], carriers: set[str]) -> str | None:
    """The parameter of ``target`` that is given the value; None if none is."""
    for keyword in call.keywords:
        if _carries(keyword.value, carriers):
            return keyword.arg
    tree = _tree(root, target[0])
    found = None if tree is None else _definition(tree, target[1])
    names = [one.arg for one in found.args.args] if found is not None else []
    return next((name for name, value in zip(names, call.args, strict=False) if _carries(value, carriers)), None)


def _target(root: Path, called: str, module: str, imports: dict[str, str]) -> tuple[str, str] | None:
    """Module and function of ``called``, through packages that hand it on; None where it is not of ``pipelines``."""
    head, _, rest = called.partition(".")
    full = f"{imports[head]}.{rest}".rstrip(".") if head in imports else f"{module}.{called}"
    while True:
        home, _, function = full.rpartition(".")
        tree = _tree(root, home)
        if tree is None:
            return None
        if _definition(tree, function) is not None:
            return home, function
        handed_on = dict(_imports(tree)).get(function)
        if handed_on is None:
            return None
        full = handed_on


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of a module, and what they are in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"


@cache
def _tree(root: Path, module: str) -> ast.Module | None:
    if module.split(".", maxsplit=1)[0] != "pipelines":
        return None
    path = root / module.replace(".", "/")
    files = [one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()]
    return ast.parse(files[0].read_text(encoding="utf-8")) if files else None


if __name__ == "__main__":
    main()
