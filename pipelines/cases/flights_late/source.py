"""Where the late flights come from: the source of the case `flights`."""

from __future__ import annotations

import polars as pl

from pipelines.cases.flights.source import flights, resolve
from pipelines.cases.flights_late.schema import FIELDS
from pipelines.cases.sources import Source, canonical
from pipelines.contracts import Window
from pipelines.params import Params

__all__ = ["resolve", "rows"]
LATE = 15
"""Minutes after the scheduled arrival from which on the US Bureau of Transportation Statistics calls a flight late."""


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window``: 1 for a flight that arrived more than ``LATE`` minutes late, or not at all."""
    frame = flights(source, window)
    late = (frame["arr_delay"] > LATE).fill_null(value=True)
    return canonical(frame.with_columns(late.cast(pl.Int8).alias(FIELDS.label)), FIELDS, window, params)
