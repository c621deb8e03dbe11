"""Which cases there are, and where their files lie."""

from __future__ import annotations

from pathlib import Path

CASES_ROOT = Path(__file__).parent / "cases"
CASE_FILES = ("params.yaml", "schema.py", "source.py", "model.py")
"""What a case's folder holds; see pipelines/cases/__init__.py."""


def case_names() -> list[str]:
    """The cases in alphabetical order: every folder under ``cases/`` that holds one of a case's files, whole or not.

    Whether each can be used says :func:`pipelines.cases.surveying.survey`. Names that begin with a dot or an underscore
    are no cases.
    """
    folders = (path for path in CASES_ROOT.iterdir() if path.name[0] not in "._" and path.is_dir())
    return sorted(path.name for path in folders if any((path / file).exists() for file in CASE_FILES))


def own_profile(case: str) -> Path | None:
    """The profile.json that lies in a case's folder, if there is one."""
    path = CASES_ROOT / case / "profile.json"
    return path if path.exists() else None
