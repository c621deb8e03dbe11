"""Which labelled rows train a candidate and which judge it: pure functions on canonical rows.

The window rule: the labelled rows whose event lies in the newest ``window_days`` before as_of; if they are
fewer than ``min_rows``, the newest ``fallback_rows`` labelled rows before as_of instead. The newest
``holdout_share`` of the rows chosen is the holdout, without any row that the champion was trained on:
both models are judged on rows that neither has seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal

import polars as pl

from pipelines.config import DatasetParams
from pipelines.contracts import Window

Rule = Literal["window", "fallback"]


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to judge on; ``excluded`` counts rows left out of the holdout."""

    train: pl.DataFrame
    holdout: pl.DataFrame
    excluded: int


def training_window(as_of: datetime, params: DatasetParams) -> Window:
    """The newest ``window_days`` of event time before ``as_of``."""
    return Window(start=as_of - timedelta(days=params.window_days), end=as_of)


def first_needed_day(frame: pl.DataFrame, label: str, as_of: datetime, params: DatasetParams) -> datetime | None:
    """Midnight of the oldest day that either rule can need, or None if ``frame`` does not reach far enough back.

    That is the older of the window's first day and the day of the ``fallback_rows``-th newest labelled row,
    with room for the share of rows that validation may take out.
    """
    wanted = math.ceil(params.fallback_rows / max(1e-9, 1 - params.max_bad_share))
    times = frame.filter(pl.col(label).is_not_null())["event_time"].sort(descending=True)
    if times.len() < wanted:
        return None
    oldest = min(times[wanted - 1], training_window(as_of, params).start)
    return datetime.combine(oldest.date(), time(0), oldest.tzinfo)


def choose(frame: pl.DataFrame, label: str, as_of: datetime, params: DatasetParams) -> tuple[pl.DataFrame, Rule]:
    """The labelled rows of the window, or of the fallback, sorted by event_time and id; and which rule held."""
    labelled = frame.filter(pl.col(label).is_not_null() & (pl.col("event_time") < as_of)).sort("event_time", "id")
    recent = labelled.filter(pl.col("event_time") >= training_window(as_of, params).start)
    if recent.height >= params.min_rows:
        return recent, "window"
    return labelled.tail(params.fallback_rows), "fallback"


def split(rows: pl.DataFrame, params: DatasetParams, trained_on: pl.Series | None = None) -> Split:
    """Split sorted rows by time; rows whose id is in ``trained_on`` (the champion's) leave the holdout, and do not come back as training rows."""
    newest = round(rows.height * params.holdout_share)
    train, holdout = rows.head(rows.height - newest), rows.tail(newest)
    unseen = holdout if trained_on is None else holdout.filter(~pl.col("id").is_in(trained_on.implode()))
    return Split(train, unseen, holdout.height - unseen.height)
