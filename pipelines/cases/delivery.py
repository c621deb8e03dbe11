"""What one run is delivered: where its rows come from, how far back they are read, and why none can be used.

The case's own code builds on nothing in here, so that it may change without changing what a case's keys stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import polars as pl

from pipelines.cases.by_day import by_day
from pipelines.cases.columns import together
from pipelines.cases.receiving import Received, count_reasons, note, noted, receive
from pipelines.cases.sources import Source, resolve_source, returned_by
from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.faults import said
from pipelines.fields import AS_DELIVERED, Fields
from pipelines.files import make_folder, work_folder
from pipelines.params import Params
from pipelines.settings import Settings


@dataclass(frozen=True)
class Origin:
    """Where rows come from: how those of a window are read, from when on there are any, and what it is, for people.

    ``parts`` are the rows of a window, whole days in each, the newest first; what has no day comes at the end.
    """

    name: Literal["source", "log"]
    parts: Callable[[Window], Iterator[Received]]
    earliest: datetime
    about: dict[str, Any]

    def read(self, window: Window) -> Received:
        """All rows of a window."""
        return whole(list(self.parts(window)))


def from_source(module: ModuleType, fields: Fields, params: Params, settings: Settings) -> Origin:
    """The case's own source: ``module`` is its source.py. Raises CaseError if that finds no source.

    One that gives ``pieces``, as declared sources do, is read without its rows ever being held together. A piece has
    ``id``, ``event_time``, the fields and the label, as ``receive`` takes them.
    """
    source = resolve_source(params.case, module.resolve, settings, params)

    def all_at_once(window: Window) -> Iterator[Received]:
        with noted() as apart:
            rows = module.rows(source, window, params)
        # What the case has brought into form goes through again, for nothing: what it has not must.
        with returned_by(params.case, module.rows):
            yield receive(rows, fields, window, params).after(apart)

    def by_days(window: Window) -> Iterator[Received]:
        apart = []
        declared = hasattr(module, "received_of")  # with checks and words of its own
        pieces = module.pieces(source, window, params) if declared else _pieces(module, source, fields, window, params)
        for frame in by_day(pieces, lambda: _scratch(settings, params.case)):
            if declared:
                part: Received = module.received_of(source, frame, window, params)
            else:
                with returned_by(params.case, module.pieces):
                    part = receive(frame, fields, window, params)
            apart.append(replace(part, rows=part.rows.clear()))
            del frame
            yield part
            del part  # nothing of these days is held while the next ones are read
        note(params.case, whole(apart))

    parts = by_days if hasattr(module, "pieces") else all_at_once
    return Origin("source", parts, params.period[0], source.facts())


def _pieces(
    module: ModuleType, source: Source, fields: Fields, window: Window, params: Params
) -> Iterator[pl.DataFrame]:
    """What a case's own source gives piece by piece, in one form. Raises CaseError for what is no piece of rows."""
    first: pl.DataFrame | None = None
    for piece in module.pieces(source, window, params):
        with returned_by(params.case, module.pieces):
            if not isinstance(piece, pl.DataFrame) or "event_time" not in piece.columns:
                form = piece.columns if isinstance(piece, pl.DataFrame) else type(piece).__name__
                raise DataError(f"{form}: give polars DataFrames with id, event_time, the fields and the label")
            try:
                first = piece.clear() if first is None else together([first, piece.clear()])
            except pl.exceptions.PolarsError as error:
                raise DataError(
                    f"pieces of other columns or types ({said(error)}): give all of them the same, in one order"
                ) from error
        yield piece
    if first is None:
        yield pl.DataFrame(schema=dict.fromkeys(("id", "event_time", *fields.names, fields.label), pl.Null))


@contextmanager
def _scratch(settings: Settings, case: str) -> Iterator[Path]:
    """A folder for rows that are not held in memory; what a process that died left there is removed."""
    make_folder(settings.lake_dir / case)
    with work_folder(settings.lake_dir / case / "scratch") as folder:
        yield folder


def whole(parts: Sequence[Received]) -> Received:
    """The parts of a window as one."""
    if len(parts) == 1:
        return parts[0]
    newest, *_ = parts
    moments = [moment for part in parts if part.times is not None for moment in part.times]
    found = replace(
        newest,
        rows=pl.concat([part.rows for part in reversed(parts)], how="diagonal_relaxed"),
        refused=pl.concat([part.refused for part in reversed(parts)], how="diagonal_relaxed"),
        delivered=sum(part.delivered for part in parts),
        repeats=sum(part.repeats for part in parts),
        outside_window=sum(part.outside_window for part in parts),
        outside_period=sum(part.outside_period for part in parts),
        times=(min(moments), max(moments)) if moments else None,
    )
    return found.after([])  # which puts the refused ones in order


def none_usable(received: Received, params: Params, origin: str, kept: Path | None) -> DataError | None:
    """Why none of the rows that ``origin`` delivered can be used, and what to do; None if it delivered none at all.

    ``kept`` is the file of those that were refused, if any were.
    """
    begin = f"{params.case}: none of {received.delivered} rows that the {origin} delivered"
    if kept is not None:
        why = ", ".join(f"{reason} ({count})" for reason, count in count_reasons(received.refused).items())
        outside = received.outside_window + received.outside_period
        return DataError(
            f"{begin} can be used: {why}; {outside} lie outside of what is needed; "
            f"e.g. {received.refused[AS_DELIVERED][0]}; they are in {kept}: mend the source, or what delivers to it"
        )
    if received.delivered and received.outside_period == received.delivered and received.times is not None:
        oldest, newest = (moment.isoformat() for moment in received.times)
        since, until = params.period
        return DataError(
            f"{begin} lies in the case's period, from {since.isoformat()} to {until.isoformat() if until else 'now'}: "
            f"their event_time is from {oldest} to {newest}; mend event_time in the source, or period in params.yaml"
        )
    return None
