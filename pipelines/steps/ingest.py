"""ingest: bring the rows that this run may need into immutable day partitions.

Before a case's first champion rows come from its source; afterwards the loop is closed: only rows that
went through the gateway, with the labels that have arrived by as_of, and the source is not even opened
(unless the case declares ``training_rows: source``).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger
from pipelines.cases import load_fields, part
from pipelines.cases.receiving import Received, count_reasons, noted, receive
from pipelines.cases.sources import resolve_source, returned_by
from pipelines.contracts import Window
from pipelines.data import dataset, lake
from pipelines.data import log as prediction_log
from pipelines.errors import DataError, TooFewRows
from pipelines.fields import AS_DELIVERED, Fields, frame_schema
from pipelines.files import write_atomic
from pipelines.line.facts import IngestFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params
from pipelines.settings import Settings

Reader = Callable[[Window], Received]
QUARANTINE = "quarantine.parquet"
"""The rows that could not be read as rows, with their reasons, in the step's folder."""


def work(run: Run, _read: Read) -> Work:
    """Write the partitions; the key is made of the hashes of partitions and refused rows.

    So late data gives a new key, and a second run without new data is a no-op. The facts say what became of every
    row that was delivered (:class:`pipelines.cases.receiving.Received`); refused ones lie in ``quarantine.parquet``.
    Raises TooFewRows if there is not a single row yet, DataError if there are some and none of them can be used.
    """
    params, settings, as_of = run.params, run.settings, run.as_of
    fields = load_fields(params.case)
    first_run = ledger.champion_before(settings.ledger, params.case, as_of) is None
    origin = "source" if first_run or params.training_rows == "source" else "log"
    read, earliest, described = (
        _from_source(params, settings) if origin == "source" else _from_log(params, settings, fields, as_of)
    )
    received = _look_back(read, earliest, fields, params, as_of)
    refused = _arrived(received.refused, fields, as_of)
    rows = _arrived(received.rows, fields, as_of)
    if rows.is_empty():
        raise _nothing(params, settings, origin, received, as_of)
    partitions = lake.write_days(settings, params.case, rows)
    window = dataset.training_window(as_of, params.dataset)
    declared: dict[str, Any] = {
        "origin": origin,
        "window": window,
        "partitions": [[p["date"], p["sha256"]] for p in partitions],
    }
    if refused.height:
        declared["refused"] = lake.content_sha256(refused)

    def build(folder: Path, _key: str) -> IngestFacts:
        if refused.height:
            refused.write_parquet(folder / QUARANTINE, compression="zstd")
        return IngestFacts(
            origin=origin,
            window=window,
            rows=rows.height,
            labelled=int(rows[fields.label].is_not_null().sum()),
            counts=received.counts,
            reasons=count_reasons(refused),
            partitions=partitions,
            source=described,
            **received.beside,
        )

    return Work(build, declared, runs_case=origin == "source")


def _nothing(params: Params, settings: Settings, origin: str, received: Received, as_of: datetime) -> DataError:
    """Why there is no row: none has come yet, which is no fault, or those that came cannot be used, which is one."""
    begin = f"{params.case}: none of {received.delivered} rows that the {origin} delivered"
    if received.refused.height:
        buffer = io.BytesIO()
        received.refused.write_parquet(buffer)
        name = f"{settings.run_dir(params.case, as_of).name}-{lake.content_sha256(received.refused)[:12]}.parquet"
        kept = settings.lake / params.case / "quarantine" / "rows" / name
        write_atomic(kept, buffer.getvalue())
        why = ", ".join(f"{reason} ({count})" for reason, count in count_reasons(received.refused).items())
        outside = received.outside_window + received.outside_period
        return DataError(
            f"{begin} can be used: {why}; {outside} lie outside of what is needed; "
            f"e.g. {received.refused[AS_DELIVERED][0]}; they are in {kept}: mend source.py, or what delivers to it"
        )
    if received.delivered and received.outside_period == received.delivered and received.times is not None:
        oldest, newest = (moment.isoformat() for moment in received.times)
        since, until = (moment if moment is None else moment.isoformat() for moment in params.period)
        return DataError(
            f"{begin} lies in the case's period, from {since} to {until or 'now'}: their event_time is from {oldest} "
            f"to {newest}; mend event_time in source.py, or period in params.yaml"
        )
    return TooFewRows(
        f"{params.case}: the {origin} has no rows before {as_of.isoformat()}: choose a later as_of, or check that "
        "rows arrive"
    )


def _from_source(params: Params, settings: Settings) -> tuple[Reader, datetime, dict[str, Any]]:
    module = part(params.case, "source")
    source = resolve_source(params.case, module.resolve, settings, params)
    fields = load_fields(params.case)

    def read(window: Window) -> Received:
        with noted() as apart:
            rows = module.rows(source, window, params)
        # What the case has brought into form goes through again, for nothing: what it has not must.
        with returned_by(params.case, module.rows):
            return receive(rows, fields, window, params).after(apart)

    return read, params.period[0], source.facts()


def _from_log(
    params: Params, settings: Settings, fields: Fields, as_of: datetime
) -> tuple[Reader, datetime, dict[str, Any]]:
    prediction_log.catch_up(settings, params.case, dataset.training_window(as_of, params.dataset))
    oldest = prediction_log.first_day(settings, params.case)
    earliest = as_of if oldest is None else datetime.combine(oldest, time(0), UTC)

    def read(window: Window) -> Received:
        labels = prediction_log.read_labels(settings, params.case, as_of, since=window.start)
        served = prediction_log.read_predictions(settings, params.case, window)
        rows = served.join(labels.select("id", "label_time", pl.col("label").alias(fields.label)), on="id", how="left")
        # A field that was declared later than a row was served is missing in it: validation says so.
        missing = [pl.lit(None).alias(name) for name in frame_schema(fields) if name not in rows.columns]
        extra = {"version": pl.Int64(), "score": pl.Float64()}
        received = receive(rows.with_columns(missing), fields, window, params, within_period=False, extra=extra)
        again = prediction_log.count(settings, params.case, "predictions", window.start, window.end) - rows.height
        return replace(
            received,
            delivered=received.delivered + again,
            repeats=received.repeats + again,
            beside={
                "log": {
                    "lines": prediction_log.fate(settings, params.case),
                    "labels": fate_of_labels(labels, served, window),
                },
            },
        )

    def fate_of_labels(labels: pl.DataFrame, served: pl.DataFrame, window: Window) -> dict[str, int]:
        # Of those that arrived since the window's first day; an older row's, or one of an id never served, is of no
        # row.
        lines = prediction_log.count(settings, params.case, "labels", window.start, as_of)
        used = labels.join(served.select("id"), on="id", how="semi").height
        return {"lines": lines, "used": used, "superseded": lines - labels.height, "of_no_row": labels.height - used}

    return (
        read,
        earliest,
        {
            "name": "prediction log",
            "kind": "log",
            "why": "the case has a champion: only what was served is learned from",
        },
    )


def _look_back(read: Reader, earliest: datetime, fields: Fields, params: Params, as_of: datetime) -> Received:
    """Whole event days, back to the oldest that the window rule or its fallback can need, and no further."""
    days = params.dataset.window_days
    while True:
        start = datetime.combine((as_of - timedelta(days=days)).date(), time(0), UTC)
        received = read(Window(start=start, end=as_of))
        first = dataset.first_needed_day(_arrived(received.rows, fields, as_of), fields.label, as_of, params.dataset)
        if first is not None:
            return received.since(first)
        if start <= earliest:
            return received
        days *= 4


def _arrived(rows: pl.DataFrame, fields: Fields, as_of: datetime) -> pl.DataFrame:
    """Hide the labels that have not arrived by ``as_of``."""
    there = pl.col("label_time") <= as_of
    return rows.with_columns(pl.when(there).then(pl.col(name)).alias(name) for name in (fields.label, "label_time"))
