"""The cases. Each folder holds a case's declared fields, source, model and parameters; nothing else knows them.

``schema.py`` is light (plain data; the gateway imports it), ``source.py`` reads or generates canonical
rows, ``model.py`` builds the torch model. Adding a case adds a folder and touches no other room.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pipelines.config import case_names
from pipelines.errors import ConfigError
from pipelines.fields import Fields


def part(case: str, name: str) -> ModuleType:
    """A module of a case: ``part("bank", "schema")``. Raises ConfigError for an unknown case."""
    if case not in case_names():
        raise ConfigError(f"unknown case {case!r}: choose one of {', '.join(case_names())}")
    return import_module(f"pipelines.cases.{case}.{name}")


def load_fields(case: str) -> Fields:
    """The declared fields of a case."""
    fields: Fields = part(case, "schema").FIELDS
    return fields
