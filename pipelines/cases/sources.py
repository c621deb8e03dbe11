"""What the sources of all cases share: where rows came from and the form they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import polars as pl

from pipelines.case_files import shown
from pipelines.cases.receiving import note, receive
from pipelines.contracts import Window
from pipelines.errors import CaseError, DataError, IntegrityError
from pipelines.fields import Fields
from pipelines.files import file_sha256
from pipelines.params import Params
from pipelines.settings import Settings

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
"""A data folder beside the repository, shared by several checkouts."""


@dataclass(frozen=True)
class Source:
    """A resolved source. ``why`` says in one sentence how it was chosen, ``notice`` is what must be shipped with it.

    ``path`` is None when rows are generated, and then so is ``sha256``.
    """

    name: str
    kind: Literal["real", "generated"]
    why: str
    notice: str
    path: Path | None = None
    sha256: str | None = None

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values for a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def places(settings: Settings) -> list[tuple[Path, str]]:
    """The folders where a case's file may lie, in the order of search, each with how it was found, in words."""
    found: list[tuple[Path, str]] = []
    if settings.data_dir is not None:
        found.append((settings.data_dir, "found in PERENNIAL_DATA_DIR"))
    if settings.data_dir != BESIDE:
        found.append((BESIDE, "found beside the repository"))
    return [*found, (settings.root / "data", "kept from an earlier download")]


def checked_sha256(path: Path, expected: str) -> str:
    """The file's sha256 if it is ``expected``; raises IntegrityError if not, DataError if it cannot be read."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable or remove it") from error
    if found != expected:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}, the case expects {expected[:12]}: "
            "it is another file; replace or remove it"
        )
    return found


def resolve_source(
    case: str, resolve: Callable[[Settings, Params], object], settings: Settings, params: Params
) -> Source:
    """What a case's ``resolve`` finds; raises CaseError if it returns no Source."""
    found = resolve(settings, params)
    if not isinstance(found, Source):
        raise CaseError(
            f"{_about(case, resolve)} a {type(found).__name__}: return a Source, see pipelines/cases/sources.py"
        )
    return found


@contextmanager
def returned_by(case: str, function: Callable[..., object]) -> Iterator[None]:
    """Around what looks at a case's rows: a DataError becomes a CaseError.

    It names the line of the function that returned the rows.
    """
    try:
        yield
    except DataError as error:
        raise CaseError(f"{_about(case, function)} what cannot be used: {error}") from error


def _about(case: str, function: Callable[..., object]) -> str:
    line = 1
    if isinstance(function, FunctionType):
        line = function.__code__.co_firstlineno
    return f"case {case}: {shown(case, 'source.py')}, line {line}: {getattr(function, '__name__', 'it')} returned"


def canonical(frame: pl.DataFrame, fields: Fields, window: Window, params: Params) -> pl.DataFrame:
    """Bring a source's rows into canonical form: declared columns and types, inside window and period, by time and id.

    ``frame`` needs ``id``, ``event_time`` (with a time zone), the declared fields and the label; ``label_time`` is
    set to ``event_time`` plus the case's label delay. What does not become a row is told by :func:`receiving.note`:
    ingest keeps and counts it. Raises what :func:`receiving.receive` raises.
    """
    if isinstance(frame, pl.DataFrame):
        frame = frame.drop("label_time", strict=False)
    received = receive(frame, fields, window, params)
    note(fields.case, received)
    return received.rows
