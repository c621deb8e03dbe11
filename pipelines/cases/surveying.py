"""Which cases there are, and what is wrong with those that cannot work.

DAGs, gateway, exporter, `make up` and `make status` ask :func:`survey`, so that a broken case stops alone. What a case
imports is read from its source: a look brings no heavy library.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock
from types import CodeType, ModuleType
from typing import TypeVar

from pipelines import case_files
from pipelines.cases import (
    FEATURES,
    FUNCTIONS,
    OPTIONAL,
    PACKAGE,
    Case,
    broken,
    declared_fields,
    file_of,
    import_part,
    kept_target,
    shown,
    source_problem,
)
from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.imports import syntax_tree
from pipelines.installation import ROOT
from pipelines.params import EncoderParams, EstimatorParams, Params, TextModelParams
from pipelines.params_file import load_params, params_file
from pipelines.problems import default_scores
from pipelines.settings import Settings, read_settings

T = TypeVar("T")
_LOCK = Lock()
_Stat = tuple[str, int, int, int]
_seen: dict[tuple[str, bool], tuple[tuple[_Stat, ...], _Stat, Case]] = {}
"""Of each case, and of either kind of look: the state of its code and parameters at the last one, and the answer."""


def survey(settings: Settings | None = None, names: Iterable[str] | None = None, *, trains: bool = True) -> list[Case]:
    """Every case there is, or those of ``names``, whole or broken, in alphabetical order. A broken case raises nothing.

    A folder of ``PERENNIAL_CASES`` that is not there stands among all cases as one that is broken, under its own path.

    For processes that go on while people work on the cases: a folder that has changed since the last call is read
    anew, its schema too, and one that has not is not opened. ``settings`` default to the environment's. Without
    ``trains`` the libraries that sources and models import may be missing: a gateway's image has none of them.
    """
    settings = settings or read_settings()
    asked = case_files.case_names() if names is None else sorted(names)
    lost = case_files.problems_of_roots() if names is None else {}
    with _LOCK:
        found = [_looked_at(case, settings, trains=trains) for case in asked]
    found = [_beside_its_rows(case, settings) for case in found]
    return [*found, *(Case(root, problem=problem) for root, problem in lost.items())]


def _looked_at(case: str, settings: Settings, *, trains: bool) -> Case:
    place = case_files.place_of(case)
    if place is not None and place.problem:
        return Case(case, problem=place.problem)
    # Before anything is read: what is written meanwhile is seen by the next look.
    code = tuple(_stat(path) for path in _code(case))
    given = _stat(params_file(case, settings))
    known = _seen.get((case, trains))
    if known is not None and known[:2] == (code, given):
        return known[2]
    found = _examined(case, anew=known is not None and known[0] != code, trains=trains)
    _seen[case, trains] = (code, given, found)
    return found


def _beside_its_rows(case: Case, settings: Settings) -> Case:
    """The case, with what is wrong with its labels' declaration beside the rows that it has: those may come anew."""
    if case.fields is None or not (problem := kept_target.problem(case.fields, case.params, settings)):
        return case
    return replace(case, problem="; ".join(filter(None, (case.problem, problem))))


def _code(case: str) -> list[Path]:
    return sorted(file_of(case, "").rglob("*.py"))


def _stat(path: Path) -> _Stat:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _examined(case: str, *, anew: bool, trains: bool) -> Case:
    if not (case.isidentifier() and case.isascii()):
        mend = "rename the folder to letters, digits and underscores"
        return Case(case, problem=f"{case_files.shown(case)} is no name for a case: {mend}")
    problems: dict[str, None] = {}  # in order, each once

    def tried(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ConfigError as error:
            problems[str(error).removeprefix(f"case {case}: ")] = None
            return None

    # The fields first: names in the parameters are looked up in them.
    fields = tried(lambda: declared_fields(case, import_part(case, "schema", lambda: _schema(case, anew=anew))))
    params = tried(lambda: _params(case, fields))
    names: dict[str, set[str] | None] = {}
    for path in _code(case):
        names[path.stem] = tried(lambda path=path: _names(case, path, trains=trains))  # type: ignore[misc]
    problems |= _of_source(case, params)
    for module, functions in (FUNCTIONS | OPTIONAL).items():
        if not file_of(case, f"{module}.py").exists():
            if module in {*OPTIONAL, "source"} or (module == "model" and _needs_no_network(params)):
                continue  # of a source it is told above
            problems[f"{shown(case, module)} is missing: write it, as the cases beside it have one"] = None
        elif (bound := names.get(module)) is not None and "*" not in bound:
            wanted = {name: f"{name}({', '.join(takes)})" for name, takes in functions.items()} | _more(module, params)
            problems |= {
                f"{shown(case, module)} has no {call}: write it": None
                for name, call in wanted.items()
                if name not in bound
            }
    if fields is not None and (problem := _of_features(case, fields, names.get("features"))):
        problems[problem] = None
    return Case(case, params, fields, "; ".join(problems))


def _params(case: str, fields: Fields | None) -> Params:
    """A case's parameters. Raises ConfigError also for a declared default that the case could not answer."""
    params = load_params(case)
    if fields is not None:
        default_scores(fields, params.serving.default)
    return params


def _of_source(case: str, params: Params | None) -> dict[str, None]:
    """What is wrong with where rows come from; nothing where the parameters, which may tell of it, are broken."""
    return dict.fromkeys([problem] if params is not None and (problem := source_problem(case, params)) else [])


def _of_features(case: str, fields: Fields, bound: set[str] | None) -> str:
    """What is wrong with features.py as far as its source tells, or "": expressions are read by who computes."""
    there = file_of(case, "features.py").exists()
    if fields.derived and not there:
        return f"{shown(case, 'features')} is missing: write it, the fields declare derived features"
    if there and not fields.derived and not _gives_none(file_of(case, "features.py")):
        return f"{shown(case, 'schema')} declares no derived features: declare those of features.py, or remove it"
    if bound is not None and FEATURES not in bound:
        return f"{shown(case, 'features')} has no {FEATURES}: write it"
    return ""


def _gives_none(path: Path) -> bool:
    """Whether a features.py is there for features to come: its FEATURES are an empty dictionary."""
    with suppress(SyntaxError, ValueError, OSError, RecursionError):  # told where its names are read
        return any(
            isinstance(statement, ast.Assign)
            and FEATURES in _bound(statement)
            and isinstance(statement.value, ast.Dict)
            and not statement.value.keys
            for statement in syntax_tree(path).body
        )
    return False


def _needs_no_network(params: Params | None) -> bool:
    """Whether all models of a case are estimators: they are parameters, and no code."""
    return params is not None and all(isinstance(model, EstimatorParams) for model in params.candidates.values())


def _more(module: str, params: Params | None) -> dict[str, str]:
    """What the model of a text has to have beside ``build``."""
    wanted: dict[str, str] = {}
    if module != "model" or params is None:
        return wanted
    for model in params.candidates.values():
        if isinstance(model, EncoderParams):
            wanted["tokenizer"] = "tokenizer(params)"
        if isinstance(model, TextModelParams) and (model.kind == "embedding" or model.head_start):
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
    package = f"{PACKAGE}.{case}"
    importlib.invalidate_caches()
    if not anew:
        return importlib.import_module(f"{package}.schema")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    importlib.import_module(package)
    name = f"{package}.schema"
    path = file_of(case, "schema.py")
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
        raise broken(case, path.stem, error) from error
    for statement in tree.body:
        for module in _modules(statement):
            if (trains or module.startswith(f"{PACKAGE}.")) and not _is_there(case, module):
                where = f"{shown(case, path.stem)}, line {statement.lineno}"
                raise ConfigError(f"case {case}: {where}: there is no module {module}: install it, or mend this line")
    return {name for statement in tree.body for name in _bound(statement)}


def _modules(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        return [statement.module]
    return []


def _is_there(case: str, module: str) -> bool:
    named, _, inside = module.removeprefix(f"{PACKAGE}.").partition(".")
    if module.startswith(f"{PACKAGE}.") and (named == case or case_files.place_of(named)):
        inside = inside.replace(".", "/")
        return not inside or file_of(named, f"{inside}.py").exists() or file_of(named, inside).is_dir()
    root = module.partition(".")[0]
    if root == PACKAGE.partition(".")[0]:
        path = ROOT.joinpath(*module.split("."))
        return path.is_dir() or path.with_suffix(".py").exists()
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
