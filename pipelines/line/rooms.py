"""What source a step's version stands for: every module of ``pipelines`` that its file can reach by its imports."""

from __future__ import annotations

from pathlib import Path

from pipelines import imports
from pipelines.line import order
from pipelines.line.step import Step

DECLARATIONS = order.__name__
"""What stands there of a step enters its key by its values."""


def rooms(step: Step) -> dict[str, Path]:
    """The modules that a step can reach, by dotted name.

    A case's own code is not among them: keys hold it by its bytes.
    """
    found = imports.reachable(f"pipelines.steps.{step.name}")
    return {name: path for name, path in found.items() if name != DECLARATIONS}


def modules_of(step: Step) -> tuple[str, ...]:
    """The names of a step's rooms."""
    return tuple(rooms(step))


def runs_case(step: Step) -> bool:
    """Whether a step or a room of it loads a part of the case's code (``cases.part``, ``cases.build_model``)."""
    names = {found for name, path in rooms(step).items() for found in imports.imported(path, name)}
    return bool(names & {"pipelines.cases.part", "pipelines.cases.build_model"})
