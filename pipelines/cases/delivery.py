"""What one run is delivered: where its rows come from, how far back they are read, and why none can be used.

The case's own code builds on nothing in here, so that it may change without changing what a case's keys stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import polars as pl

from pipelines.cases.receiving import Received, count_reasons, noted, receive
from pipelines.cases.sources import resolve_source, returned_by
from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.fields import AS_DELIVERED, Fields
from pipelines.params import Params
from pipelines.settings import Settings


@dataclass(frozen=True)
class Origin:
    """Where rows come from: how those of a window are read, from when on there are any, and what it is, for people."""

    name: Literal["source", "log"]
    read: Callable[[Window], Received]
    earliest: datetime
    about: dict[str, Any]


def from_source(module: ModuleType, fields: Fields, params: Params, settings: Settings) -> Origin:
    """The case's own source: ``module`` is its source.py. Raises CaseError if that finds no source."""
    source = resolve_source(params.case, module.resolve, settings, params)

    def read(window: Window) -> Received:
        with noted() as apart:
            rows = module.rows(source, window, params)
        # What the case has brought into form goes through again, for nothing: what it has not must.
        with returned_by(params.case, module.rows):
            return receive(rows, fields, window, params).after(apart)

    return Origin("source", read, params.period[0], source.facts())


def look_back(
    origin: Origin, as_of: datetime, days: int, first_needed: Callable[[pl.DataFrame], datetime | None]
) -> Received:
    """Whole event days up to ``as_of``: at least ``days``, and no more than it takes to reach the first needed one.

    ``first_needed`` names that of the rows read so far, or None if they do not reach back to it.
    """
    while True:
        start = datetime.combine((as_of - timedelta(days=days)).date(), time(0), UTC)
        received = origin.read(Window(start=start, end=as_of))
        first = first_needed(received.rows)
        if first is not None:
            return received.since(first)
        if start <= origin.earliest:
            return received
        days *= 4


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
