"""The cases. Each folder holds a case's declared fields, source, model and parameters; nothing else knows them.

A folder lies here or outside of the tree (pipelines/case_files.py). Either way its package is
``pipelines.cases.<case>``: what one process names or pickles of a case is found by every other.

``schema.py`` is light (plain data; the gateway imports it), ``features.py`` has the expressions of its derived features
if it declares some (a gateway finds them in the bundle), ``source.py`` reads or generates canonical
rows (a case with a declared source has none), ``model.py`` builds the torch model (a case of estimators alone has
none). Adding a case adds a folder and touches no other room.

:func:`pipelines.cases.surveying.survey` says which cases there are, and what is wrong with those that cannot work.
:func:`load_case` is for whoever wants one case; it raises what is wrong with it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines import case_files
from pipelines.derived import with_formulas
from pipelines.errors import CaseError, ConfigError, PerennialError
from pipelines.faults import place, said
from pipelines.fields import Fields
from pipelines.params import AnyModel, Params
from pipelines.params_file import load_params

PACKAGE = __name__
FUNCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "source": {"resolve": ("settings", "params"), "rows": ("source", "window", "params")},
    "model": {"build": ("params", "fields")},
}
"""What the loop calls in a case's modules, and with what."""
FEATURES = "FEATURES"
"""The expressions of derived features in a case's features.py."""
OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {"probe": {"fit": ("rows", "fields")}}
"""The same of modules that a case need not have."""


class _Outside:
    """Finds the package of a case that lies outside of the tree, for the import system."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package of such a case; None for every other module."""
        package, _, case = name.rpartition(".")
        folder = case_files.outside(case) if package == PACKAGE else None
        if folder is None:
            return None
        if (folder / "__init__.py").exists():
            return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


sys.meta_path.append(_Outside)  # last: what lies here is what it was


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


def load_case(case: str) -> Case:
    """One case with its parameters and fields. Raises ConfigError if they cannot be read, or are another case's."""
    return Case(case, load_params(case), load_fields(case))


def load_fields(case: str) -> Fields:
    """The declared fields of a case, with the formulas of its derived features.

    Raises ConfigError if they cannot be read, are another case's, or an expression is not one that can be computed for
    a single row.
    """
    fields = declared_fields(case, part(case, "schema"))
    if not fields.derived:
        return fields
    try:
        return with_formulas(fields, expressions(case))
    except ConfigError as error:
        raise ConfigError(f"case {case}: {shown(case, 'features')}: {error}") from error


def expressions(case: str) -> Any:
    """The polars expressions of a case's derived features, by name. Raises ConfigError if there are none."""
    found = getattr(part(case, "features"), FEATURES, None)
    if found is None:
        raise ConfigError(f"case {case}: {shown(case, 'features')} has no {FEATURES}: write it")
    return found


def part(case: str, name: str) -> ModuleType:
    """A module of a case: ``part("bank", "schema")``.

    Raises ConfigError for an unknown case, for a module that is missing or does not import, and for one without the
    functions that the loop calls; it names case, file and line, and says what to do.
    """
    place = case_files.place_of(case)
    if place is None:
        raise ConfigError(f"unknown case {case!r}: choose one of {', '.join(case_files.case_names())}")
    if place.problem:
        raise ConfigError(f"case {case}: {place.problem}")
    if name == "source":
        params = load_params(case)
        if params.declared_source or not file_of(case, "source.py").exists():
            return declared_source(case, params)
    module = import_part(case, name, lambda: importlib.import_module(f"{__name__}.{case}.{name}"))
    for function, takes in (FUNCTIONS | OPTIONAL).get(name, {}).items():
        _check_function(case, name, function, takes, getattr(module, function, None))
    return module


def declared_source(case: str, params: Params) -> ModuleType:
    """What reads a declared source as a source.py would. Raises ConfigError if there is none, or a source.py too."""
    if problem := source_problem(case, params):
        raise ConfigError(f"case {case}: {problem}")
    from pipelines.cases import declared

    return declared


def source_problem(case: str, params: Params) -> str:
    """What is wrong with where a case's rows come from, a source.py or a declared source, or ""."""
    there = file_of(case, "source.py").exists()
    declared = params.declared_source is not None
    if declared and there:
        return (
            f"params.yaml declares a source, and there is {shown(case, 'source')}: remove one of them, rows come from "
            "one place"
        )
    if not declared and not there:
        return (
            f"{shown(case, 'source')} is missing: write it, as the cases beside it have one, or declare a source in "
            "params.yaml (docs/cases.md)"
        )
    return ""


def build_model(case: str, params: AnyModel, fields: Fields, **more: Any) -> Any:
    """The torch module that a case's ``build`` makes (``more``: its options). Raises CaseError if it makes none."""
    model = part(case, "model").build(params, fields, **more)
    if not hasattr(model, "state_dict"):
        raise CaseError(
            f"case {case}: {shown(case, 'model')}: build returned {type(model).__name__}: return a torch.nn.Module"
        )
    return model


def import_part(case: str, name: str, load: Callable[[], ModuleType]) -> ModuleType:
    """What ``load`` imports as a case's module ``name``. Raises ConfigError if it is missing or does not import."""
    if not file_of(case, f"{name}.py").exists():
        raise ConfigError(f"case {case}: {shown(case, name)} is missing: write it, as the cases beside it have one")
    try:
        return load()
    except (Exception, SystemExit) as error:
        raise broken(case, name, error) from error


def broken(case: str, name: str, error: BaseException) -> ConfigError:
    """The error of a case's module ``name`` that failed with ``error``: it names file and line."""
    words = said(error)
    if isinstance(error, PerennialError):
        words = str(error)
    where = shown(case, name)
    found = place(error)
    if found is not None:
        _, where = found
    return ConfigError(f"case {case}: {where}: {words}: mend this line{_or_upgrade(error)}")


def _or_upgrade(error: BaseException) -> str:
    """What else mends a line that asks Perennial for what this version of it does not have."""
    ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] in ("pipelines", "perennial")
    if ours or (isinstance(error, TypeError) and "unexpected keyword argument" in str(error)):
        return ", or install the version of Perennial that the case was written for"
    return ""


def _check_function(case: str, name: str, function: str, takes: tuple[str, ...], found: object) -> None:
    wanted = f"{function}({', '.join(takes)})"
    if not callable(found):
        raise ConfigError(f"case {case}: {shown(case, name)} has no {wanted}: write it")
    try:
        inspect.signature(found).bind(*takes)
    except TypeError as error:
        raise ConfigError(
            f"case {case}: {shown(case, name)} has {function}{inspect.signature(found)}: it is called as {wanted}"
        ) from error
    except ValueError:
        pass  # a built-in function does not say what it takes


def declared_fields(case: str, schema: ModuleType) -> Fields:
    """The fields that a case's schema declares. Raises ConfigError if it declares none, or another case's."""
    fields = getattr(schema, "FIELDS", None)
    if not isinstance(fields, Fields):
        raise ConfigError(
            f"case {case}: {shown(case, 'schema')} declares no FIELDS: write FIELDS = Fields(case={case!r}, ...)"
        )
    if fields.case != case:
        raise ConfigError(
            f"case {case}: {shown(case, 'schema')} declares the fields of the case {fields.case}: "
            f"write case={case!r} there"
        )
    return fields


def file_of(case: str, file: str) -> Path:
    """Where a file of a case's code lies, or would: a package's folders are those that its import searches."""
    found = [case_files.folder_of(case) / file, *(Path(folder, case, file) for folder in __path__)]
    return next((path for path in found if path.exists()), found[0])


def shown(case: str, name: str) -> str:
    """A module of a case as messages name it."""
    return case_files.shown(case, f"{name}.py")
