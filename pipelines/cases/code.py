"""A case's code as part of what its runs are.

It is what a step's key holds, and what a training's record names: all files of the case's folder, and the modules of
`pipelines/cases/` outside of it that they import, directly or not. What enters keys by its values is left out:
parameters, the demo's plan, and the frozen scales of profiles.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipelines import cases, storage
from pipelines.errors import ConfigError

BY_VALUE = ("params.yaml", "demo.yaml", "profile.json", "variants")
"""What of a case's folder enters keys by its values, or none of them."""
PROSE = (".md", ".pyc")


def code_sha256(case: str) -> str:
    """sha256 (hex) of a case's code: its files, and the shared modules that it builds from, by name and bytes."""
    return storage.digest({name: storage.file_sha256(path) for name, path in _files(case).items()})


def modules(case: str) -> tuple[str, ...]:
    """The dotted names of a case's package and of the shared modules that it builds from."""
    package = cases.__name__
    shared = [name for name in _files(case) if name.partition("/")[0] != case]
    return (
        f"{package}.{case}",
        *(f"{package}.{name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}" for name in shared),
    )


def _files(case: str) -> dict[str, Path]:
    """The files of a case's code, by their path below `pipelines/cases/`, in alphabetical order.

    Raises ConfigError if there is no such folder.
    """
    folder = next((path for root in cases.__path__ if (path := Path(root, case)).is_dir()), None)
    if folder is None:
        raise ConfigError(f"pipelines/cases/{case} does not exist: there is no such case")
    own = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = {f"{case}/{path}": folder / path for path in own if _is_code(path)}
    waiting = [name for name in found if name.endswith(".py")]
    while waiting:
        name = waiting.pop()
        for module in _imports(found[name], name):
            place = _place(module)
            if place is None:
                continue
            shared, path = place
            if shared not in found:
                found[shared] = path
                waiting.append(shared)
    return dict(sorted(found.items()))


def _is_code(path: Path) -> bool:
    """Whether a file counts, by its path below the case's folder."""
    return (
        path.parts[0] not in BY_VALUE
        and path.suffix not in PROSE
        and not any(part[0] == "." or part == "__pycache__" for part in path.parts)
    )


def _place(module: tuple[str, ...]) -> tuple[str, Path] | None:
    """Name and file of a module below `pipelines/cases/`, if there is one."""
    for root in map(Path, cases.__path__):
        for parts in ((*module[:-1], f"{module[-1]}.py"), (*module, "__init__.py")):
            if (path := root.joinpath(*parts)).is_file():
                return "/".join(parts), path
    return None


def _imports(path: Path, name: str) -> Iterator[tuple[str, ...]]:
    """What a module may import from `pipelines/cases/`, as paths below it.

    That is nothing of a file that does not parse: it does not run either.
    """
    try:
        tree = cases.syntax_tree(path)
    except (SyntaxError, ValueError):
        return
    package = tuple(cases.__name__.split("."))
    own_package = (*package, *name.split("/")[:-1])
    for node in ast.walk(tree):
        for module in _named(node, own_package):
            if len(module) > len(package) and module[: len(package)] == package:
                yield module[len(package) :]


def _named(node: ast.AST, own_package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The modules that an import of a module in ``own_package`` may name; none of another statement."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module: tuple[str, ...] = ()
    if node.level:
        module = own_package[: len(own_package) - node.level + 1]
    if node.module:
        module = (*module, *node.module.split("."))
    # A name may be a module of its own.
    return [module, *((*module, alias.name) for alias in node.names)]
