"""ingest: bring the rows that this run may need into immutable day partitions.

Before a case's first champion rows come from its source; afterwards the loop is closed: only rows that
went through the gateway, with the labels that have arrived by as_of, and the source is not even opened
(unless the case declares ``training_rows: source``).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields, part
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest, Window
from pipelines.data import dataset, lake
from pipelines.data import log as prediction_log
from pipelines.errors import TooFewRows
from pipelines.fields import Fields, frame_schema

STEP_VERSION = 2
ROOMS = ("pipelines.data.dataset", "pipelines.data.lake", "pipelines.data.log", "pipelines.cases.sources")

Read = Callable[[Window], pl.DataFrame]


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write the partitions and ``run_dir/ingest``; the key is made of the partitions' content hashes.

    So late data gives a new key, and a second run without new data is a no-op. Raises TooFewRows if there
    is not a single row.
    """
    fields = load_fields(params.case)
    first_run = ledger.champion_before(settings.ledger, params.case, as_of) is None
    origin = "source" if first_run or params.training_rows == "source" else "log"
    read, earliest, described = _from_source(params, settings) if origin == "source" else _from_log(params, settings, fields, as_of)
    rows = _arrived(_look_back(read, earliest, fields, params, as_of), fields, as_of)
    if rows.is_empty():
        raise TooFewRows(f"{params.case}: the {origin} has no rows before {as_of.isoformat()}: choose a later as_of, or check that rows arrive")
    partitions = lake.write_days(settings, params.case, rows)
    window = dataset.training_window(as_of, params.dataset).model_dump(mode="json")
    declared = {"origin": origin, "window": window, "partitions": [[p["date"], p["sha256"]] for p in partitions]}
    labelled = int(rows[fields.label].is_not_null().sum())
    facts = {"origin": origin, "window": window, "rows": rows.height, "labelled": labelled, "partitions": partitions, "source": described}
    return storage.commit(
        run_dir / "ingest",
        case=params.case,
        as_of=as_of,
        key=storage.step_key("ingest", STEP_VERSION, {}, declared),
        inputs={},
        build=lambda _folder: facts,
    )


def _from_source(params: Params, settings: Settings) -> tuple[Read, datetime, dict[str, Any]]:
    module = part(params.case, "source")
    source = module.resolve(settings, params)
    return lambda window: module.rows(source, window, params), params.period[0], source.facts()


def _from_log(params: Params, settings: Settings, fields: Fields, as_of: datetime) -> tuple[Read, datetime, dict[str, Any]]:
    prediction_log.catch_up(settings, params.case, dataset.training_window(as_of, params.dataset))
    oldest = prediction_log.first_day(settings, params.case)
    earliest = as_of if oldest is None else datetime.combine(oldest, time(0), UTC)

    def read(window: Window) -> pl.DataFrame:
        labels = prediction_log.read_labels(settings, params.case, as_of, since=window.start)
        rows = prediction_log.read_predictions(settings, params.case, window).join(
            labels.select("id", "label_time", pl.col("label").alias(fields.label)), on="id", how="left"
        )
        schema = frame_schema(fields) | {"version": pl.Int64(), "score": pl.Float64()}
        missing = [pl.lit(None).alias(name) for name in schema if name not in rows.columns]
        # Not strict: a value that is not of its field's type becomes null, and validation quarantines the row.
        return rows.with_columns(missing).select(pl.col(name).cast(kind, strict=False) for name, kind in schema.items()).sort("event_time", "id")

    return read, earliest, {"name": "prediction log", "kind": "log", "why": "the case has a champion: only what was served is learned from"}


def _look_back(read: Read, earliest: datetime, fields: Fields, params: Params, as_of: datetime) -> pl.DataFrame:
    """Whole event days, back to the oldest that the window rule or its fallback can need, and no further."""
    days = params.dataset.window_days
    while True:
        start = datetime.combine((as_of - timedelta(days=days)).date(), time(0), UTC)
        rows = read(Window(start=start, end=as_of))
        first = dataset.first_needed_day(_arrived(rows, fields, as_of), fields.label, as_of, params.dataset)
        if first is not None:
            return rows.filter(pl.col("event_time") >= first)
        if start <= earliest:
            return rows
        days *= 4


def _arrived(rows: pl.DataFrame, fields: Fields, as_of: datetime) -> pl.DataFrame:
    """Hide the labels that have not arrived by ``as_of``."""
    there = pl.col("label_time") <= as_of
    return rows.with_columns(pl.when(there).then(pl.col(name)).alias(name) for name in (fields.label, "label_time"))
