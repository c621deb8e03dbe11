"""The rows that the gateway served, as rows to learn from: with the labels that had arrived, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

import polars as pl

from pipelines.contracts import Window
from pipelines.data import log
from pipelines.fields import Fields, frame_schema
from pipelines.settings import Settings


@dataclass(frozen=True)
class Served:
    """The ``rows`` of a window, one for each prediction, with the fields as they were logged and the known labels.

    ``repeats`` more lines are of the same predictions. ``fate`` says what became of the log's ``lines`` as a whole, and
    of the ``labels`` that arrived since the window's first day.
    """

    rows: pl.DataFrame
    repeats: int
    fate: dict[str, Any]


def first_moment(settings: Settings, case: str) -> datetime | None:
    """The beginning of the first day on which anything was served; None if nothing was yet."""
    day = log.first_day(settings, case)
    if day is None:
        return None
    return datetime.combine(day, time(0), UTC)


def read(settings: Settings, fields: Fields, window: Window, as_of: datetime) -> Served:
    """What was served in ``window``, with the labels that had arrived by ``as_of``."""
    labels = log.read_labels(settings, fields.case, as_of, since=window.start)
    answered = log.read_predictions(settings, fields.case, window)
    known = labels.select("id", "label_time", pl.col("label").alias(fields.label))
    rows = answered.join(known, on="id", how="left")
    # A field that was declared later than a row was served is missing in it: validation says so.
    rows = rows.with_columns(pl.lit(None).alias(name) for name in frame_schema(fields) if name not in rows.columns)
    lines = log.count(settings, fields.case, "predictions", window.start, window.end)
    arrived = log.count(settings, fields.case, "labels", window.start, as_of)
    used = labels.join(answered.select("id"), on="id", how="semi").height
    return Served(
        rows,
        repeats=lines - rows.height,
        fate={
            "lines": log.fate(settings, fields.case),
            # Labels of no row are an older row's, or those of an id that was never served.
            "labels": {
                "lines": arrived,
                "used": used,
                "superseded": arrived - labels.height,
                "of_no_row": labels.height - used,
            },
        },
    )
