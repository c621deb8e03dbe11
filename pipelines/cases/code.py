"""A case's code as part of what its runs are.

It is what a step's key holds, and what a training's record names: all files of the case's folder, and the modules of
`pipelines/cases/` outside of it that they import, directly or not. What enters keys by its values is left out:
parameters, the demo's plan, and the frozen scales of profiles; and so are its tests (`test_*`).
"""

from __future__ import annotations

from pathlib import Path

from pipelines import case_files, cases, imports, storage
from pipelines.errors import ConfigError
from pipelines.files import file_sha256

BY_VALUE = ("params.yaml", "demo.yaml", "profile.json", "variants")
"""What of a case's folder enters keys by its values, or none of them."""
PROSE = (".md", ".pyc")


def code_sha256(case: str) -> str:
    """sha256 (hex) of a case's code: its files, and the shared modules that it builds from, by name and bytes."""
    return storage.digest({name: file_sha256(path) for name, path in _files(case).items()})


def modules(case: str) -> tuple[str, ...]:
    """The dotted names of a case's package and of the shared modules that it builds from."""
    package = cases.__name__
    shared = [name for name in _files(case) if name.partition("/")[0] != case]
    return (
        f"{package}.{case}",
        *map(_module, shared),
    )


def _files(case: str) -> dict[str, Path]:
    """The files of a case's code, by their path below `pipelines/cases/`, in alphabetical order.

    Raises ConfigError if there is no such folder.
    """
    folder = cases.file_of(case, "")
    if not folder.is_dir():
        raise ConfigError(f"pipelines/cases/{case} does not exist: there is no such case")
    own = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = {f"{case}/{path}": folder / path for path in own if _is_code(path)}
    start = {_module(name): path for name, path in found.items() if name.endswith(".py")}
    shared = imports.closure(start, _place)
    more = {_name(module, path): path for module, path in shared.items() if module not in start}
    return dict(sorted({**found, **more}.items()))


def _module(name: str) -> str:
    """The dotted name of a module, by its path below `pipelines/cases/`."""
    return f"{cases.__name__}.{name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"


def _name(module: str, path: Path) -> str:
    """A module's path below `pipelines/cases/`, or what it would be there: where a case lies is in no key."""
    below = module.removeprefix(f"{cases.__name__}.").replace(".", "/")
    return f"{below}/__init__.py" if path.name == "__init__.py" else f"{below}.py"


def _is_code(path: Path) -> bool:
    """Whether a file counts, by its path below the case's folder."""
    return (
        path.parts[0] not in BY_VALUE
        and path.suffix not in PROSE
        and not path.name.startswith("test_")
        and not any(part[0] == "." or part == "__pycache__" for part in path.parts)
    )


def _place(module: str) -> Path | None:
    """The file of a module of `pipelines.cases`, if there is one."""
    package, _, below = module.partition(f"{cases.__name__}.")
    if package or not below:
        return None
    case, *inside = below.split(".")
    outside = case_files.outside(case)
    places = [*(Path(root, case) for root in cases.__path__), *([outside] if outside else [])]
    places = [place.joinpath(*inside) for place in places]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)
