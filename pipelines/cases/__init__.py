"""The cases. Each folder holds a case's declared fields, source, model and parameters; nothing else knows them.

``schema.py`` is light (plain data; the gateway imports it), ``source.py`` reads or generates canonical
rows, ``model.py`` builds the torch model. Adding a case adds a folder and touches no other room.

:func:`survey` says which cases there are, and what is wrong with those that cannot work. DAGs, gateway,
exporter, `make up` and `make status` ask it, so that a broken case stops alone. :func:`load_case` is for
whoever wants one case; it raises what is wrong with it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock
from types import CodeType, ModuleType
from typing import Any, TypeVar

from pipelines.case_files import case_names
from pipelines.errors import CaseError, ConfigError, PerennialError
from pipelines.faults import place, said
from pipelines.fields import Fields
from pipelines.params import AnyModel, Params, TextModelParams
from pipelines.params_file import load_params, params_file
from pipelines.settings import Settings, read_settings

T = TypeVar("T")
FUNCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "source": {"resolve": ("settings", "params"), "rows": ("source", "window", "params")},
    "model": {"build": ("params", "fields")},
}
"""What the loop calls in a case's modules, and with what."""


@dataclass(frozen=True)
class Case:
    """A case as its folder is. ``problem`` says what is wrong with it and what to do; empty: nothing is.

    Parameters and fields are there as far as they can be read: a case whose source is broken can still be
    served and watched.
    """

    name: str
    params: Params | None = None
    fields: Fields | None = None
    problem: str = ""


def survey(settings: Settings | None = None, names: Iterable[str] | None = None, *, trains: bool = True) -> list[Case]:
    """Every case there is, or those of ``names``, whole or broken, in alphabetical order. A broken case raises nothing.

    For processes that go on while people work on the cases: a folder that has changed since the last call is read
    anew, its schema too, and one that has not is not opened. ``settings`` default to the environment's. Without
    ``trains`` the libraries that sources and models import may be missing: a gateway's image has none of them.
    """
    settings = settings or read_settings()
    if names is None:
        names = case_names()
    with _LOCK:
        return [_looked_at(case, settings, trains=trains) for case in sorted(names)]


def load_case(case: str) -> Case:
    """One case with its parameters and fields. Raises ConfigError if they cannot be read, or are another case's."""
    return Case(case, load_params(case), load_fields(case))


def load_fields(case: str) -> Fields:
    """The declared fields of a case. Raises ConfigError if they cannot be read, or are another case's."""
    return _fields_of(case, part(case, "schema"))


def part(case: str, name: str) -> ModuleType:
    """A module of a case: ``part("bank", "schema")``.

    Raises ConfigError for an unknown case, for a module that is missing or does not import, and for one without the
    functions that the loop calls; it names case, file and line, and says what to do.
    """
    if case not in case_names():
        raise ConfigError(f"unknown case {case!r}: choose one of {', '.join(case_names())}")
    module = _imported(case, name, lambda: importlib.import_module(f"{__name__}.{case}.{name}"))
    for function, takes in FUNCTIONS.get(name, {}).items():
        _check_function(case, name, function, takes, getattr(module, function, None))
    return module


def build_model(case: str, params: AnyModel, fields: Fields, **more: Any) -> Any:
    """The torch module that a case's ``build`` makes (``more``: its options). Raises CaseError if it makes none."""
    model = part(case, "model").build(params, fields, **more)
    if not hasattr(model, "state_dict"):
        raise CaseError(
            f"case {case}: {_shown(case, 'model')}: build returned {type(model).__name__}: return a torch.nn.Module"
        )
    return model


def syntax_tree(path: Path) -> ast.Module:
    """The syntax tree of a module of a case. Raises what ``ast.parse`` does, and OSError."""
    # One at a time: with two threads in it, CPython 3.11 fails where its garbage collector runs Python code
    # (gh-106905).
    with _PARSER:
        return ast.parse(path.read_bytes(), str(path))


def _imported(case: str, name: str, load: Callable[[], ModuleType]) -> ModuleType:
    if not _path(case, f"{name}.py").exists():
        raise ConfigError(f"case {case}: {_shown(case, name)} is missing: write it, as the cases beside it have one")
    try:
        return load()
    except (Exception, SystemExit) as error:
        raise _broken(case, name, error) from error


def _broken(case: str, name: str, error: BaseException) -> ConfigError:
    words = said(error)
    if isinstance(error, PerennialError):
        words = str(error)
    where = _shown(case, name)
    found = place(error)
    if found is not None:
        _, where = found
    return ConfigError(f"case {case}: {where}: {words}: mend this line")


def _check_function(case: str, name: str, function: str, takes: tuple[str, ...], found: object) -> None:
    wanted = f"{function}({', '.join(takes)})"
    if not callable(found):
        raise ConfigError(f"case {case}: {_shown(case, name)} has no {wanted}: write it")
    try:
        inspect.signature(found).bind(*takes)
    except TypeError as error:
        raise ConfigError(
            f"case {case}: {_shown(case, name)} has {function}{inspect.signature(found)}: it is called as {wanted}"
        ) from error
    except ValueError:
        pass  # a built-in function does not say what it takes


def _fields_of(case: str, schema: ModuleType) -> Fields:
    fields = getattr(schema, "FIELDS", None)
    if not isinstance(fields, Fields):
        raise ConfigError(
            f"case {case}: {_shown(case, 'schema')} declares no FIELDS: write FIELDS = Fields(case={case!r}, ...)"
        )
    if fields.case != case:
        raise ConfigError(
            f"case {case}: {_shown(case, 'schema')} declares the fields of the case {fields.case}: "
            f"write case={case!r} there"
        )
    return fields


def _path(case: str, file: str) -> Path:
    """Where a file of a case's code lies, or would: a package's folders are those that its import searches."""
    found = [Path(folder, case, file) for folder in __path__]
    return next((path for path in found if path.exists()), found[0])


def _shown(case: str, name: str) -> str:
    return f"pipelines/cases/{case}/{name}.py"


# --- the survey -----------------------------------------------------------------------------------

_LOCK = Lock()
_PARSER = Lock()
_Stat = tuple[str, int, int, int]
_seen: dict[tuple[str, bool], tuple[tuple[_Stat, ...], _Stat, Case]] = {}
"""Of each case, and of either kind of look: the state of its code and parameters at the last one, and the answer."""


def _looked_at(case: str, settings: Settings, *, trains: bool) -> Case:
    # Before anything is read: what is written meanwhile is seen by the next look.
    code = tuple(_stat(path) for path in _code(case))
    given = _stat(params_file(case, settings))
    known = _seen.get((case, trains))
    if known is not None and known[:2] == (code, given):
        return known[2]
    found = _examined(case, anew=known is not None and known[0] != code, trains=trains)
    _seen[case, trains] = (code, given, found)
    return found


def _code(case: str) -> list[Path]:
    return sorted(_path(case, "").rglob("*.py"))


def _stat(path: Path) -> _Stat:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _examined(case: str, *, anew: bool, trains: bool) -> Case:
    if not (case.isidentifier() and case.isascii()):
        mend = "rename the folder to letters, digits and underscores"
        return Case(case, problem=f"pipelines/cases/{case} is no name for a case: {mend}")
    problems: dict[str, None] = {}  # in order, each once

    def tried(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ConfigError as error:
            problems[str(error).removeprefix(f"case {case}: ")] = None
            return None

    # The fields first: names in the parameters are looked up in them.
    fields = tried(lambda: _fields_of(case, _imported(case, "schema", lambda: _schema(case, anew=anew))))
    params = tried(lambda: load_params(case))
    names: dict[str, set[str] | None] = {}
    for path in _code(case):
        names[path.stem] = tried(lambda path=path: _names(case, path, trains=trains))  # type: ignore[misc]
    for module, functions in FUNCTIONS.items():
        if not _path(case, f"{module}.py").exists():
            problems[f"{_shown(case, module)} is missing: write it, as the cases beside it have one"] = None
        elif (bound := names.get(module)) is not None and "*" not in bound:
            wanted = {name: f"{name}({', '.join(takes)})" for name, takes in functions.items()} | _more(module, params)
            problems |= {
                f"{_shown(case, module)} has no {call}: write it": None
                for name, call in wanted.items()
                if name not in bound
            }
    return Case(case, params, fields, "; ".join(problems))


def _more(module: str, params: Params | None) -> dict[str, str]:
    """What the model of a text has to have beside ``build``."""
    if module != "model" or params is None or not isinstance(params.model, TextModelParams):
        return {}
    wanted = {"tokenizer": "tokenizer(params)"}
    if params.model.kind == "embedding" or params.model.head_start:
        wanted["fit_head"] = "fit_head(model, tokens, labels, params, cache)"
    return wanted


class _Source(SourceFileLoader):
    """Compiles the file as it is: byte-code knows its source by size and whole seconds, too little for an edit."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - importlib's signature
        """Code of what is in the file now."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _schema(case: str, *, anew: bool) -> ModuleType:
    """The case's schema; ``anew`` forgets what this process has imported of the case before."""
    package = f"{__name__}.{case}"
    importlib.invalidate_caches()
    if not anew:
        return importlib.import_module(f"{package}.schema")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    importlib.import_module(package)
    name = f"{package}.schema"
    path = _path(case, "schema.py")
    loader = _Source(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _names(case: str, path: Path, *, trains: bool) -> set[str]:
    """The names that a module binds when it is imported, found without importing it.

    A source or model would bring heavy libraries. Raises ConfigError if the module does not parse, or imports one that
    is not there: one of the project's own, or, where it ``trains``, any.
    """
    try:
        tree = syntax_tree(path)
    except (SyntaxError, ValueError, OSError, RecursionError) as error:
        raise _broken(case, path.stem, error) from error
    for statement in tree.body:
        for module in _modules(statement):
            if (trains or module.startswith(f"{__name__}.")) and not _is_there(case, module):
                shown = f"{_shown(case, path.stem)}, line {statement.lineno}"
                raise ConfigError(f"case {case}: {shown}: there is no module {module}: install it, or mend this line")
    return {name for statement in tree.body for name in _bound(statement)}


def _modules(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        return [statement.module]
    return []


def _is_there(case: str, module: str) -> bool:
    own = f"{__name__}.{case}."
    if module.startswith(own):
        inside = module.removeprefix(own).replace(".", "/")
        return _path(case, f"{inside}.py").exists() or _path(case, inside).is_dir()
    root = module.partition(".")[0]
    return root in sys.modules or find_spec(root) is not None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names bound by one statement of a module, in its branches too."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
        return
    for inner in ast.iter_child_nodes(statement):
        if isinstance(inner, ast.stmt):
            yield from _bound(inner)
        elif isinstance(inner, ast.ExceptHandler | ast.match_case):
            for one in inner.body:
                yield from _bound(one)
        else:
            yield from (
                node.id for node in ast.walk(inner) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
