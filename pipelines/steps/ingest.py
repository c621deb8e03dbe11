"""ingest: bring the rows that this run may need into immutable day partitions.

Before a case's first champion rows come from its source; afterwards the loop is closed: only rows that
went through the gateway, with the labels that have arrived by as_of, and the source is not even opened
(unless the case declares ``training_rows: source``). A case whose declared source is the log has no other rows.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger
from pipelines.cases import load_fields, part
from pipelines.cases.delivery import Origin, from_source, look_back, none_usable
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.contracts import Window
from pipelines.data import dataset, lake, served
from pipelines.data import log as prediction_log
from pipelines.errors import DataError, TooFewRows
from pipelines.fields import Fields
from pipelines.line.facts import IngestFacts
from pipelines.line.step import Read, Run, Work

QUARANTINE = "quarantine.parquet"
"""The rows that could not be read as rows, with their reasons, in the step's folder."""


def work(run: Run, _read: Read) -> Work:
    """Write the partitions; the key is made of the hashes of partitions and refused rows.

    So late data gives a new key, and a second run without new data is a no-op. The facts say what became of every
    row that was delivered (:class:`pipelines.cases.receiving.Received`); refused ones lie in ``quarantine.parquet``.
    Raises TooFewRows if there is not a single row yet, DataError if there are some and none of them can be used.
    """
    params, settings, as_of = run.params, run.settings, run.as_of
    fields = load_fields(run.case)
    first_run = ledger.champion_before(settings.ledger, run.case, as_of) is None
    if not params.learns_from_log_alone and (first_run or params.training_rows == "source"):
        origin = from_source(part(run.case, "source"), fields, params, settings)
    else:
        origin = _from_log(run, fields)

    def first_needed(rows: pl.DataFrame) -> datetime | None:
        known = dataset.known_at(rows, fields.label, as_of)
        return dataset.first_needed_day(known, fields.label, as_of, params.dataset)

    received = look_back(origin, as_of, params.dataset.window_days, first_needed)
    refused = dataset.known_at(received.refused, fields.label, as_of)
    rows = dataset.known_at(received.rows, fields.label, as_of)
    if rows.is_empty():
        raise _nothing(run, origin.name, received)
    labelled = int(rows[fields.label].is_not_null().sum())
    if params.learns_from_log_alone and first_run and labelled < params.dataset.first_rows:
        raise _too_few(run, rows.height, labelled)
    partitions = lake.write_days(settings, run.case, rows)
    window = dataset.training_window(as_of, params.dataset)
    declared: dict[str, Any] = {
        "origin": origin.name,
        "window": window,
        "partitions": [[p["date"], p["sha256"]] for p in partitions],
    }
    if refused.height:
        declared["refused"] = lake.content_sha256(refused)

    def build(folder: Path, _key: str) -> IngestFacts:
        if refused.height:
            refused.write_parquet(folder / QUARANTINE, compression="zstd")
        return IngestFacts(
            origin=origin.name,
            window=window,
            rows=rows.height,
            labelled=labelled,
            counts=received.counts,
            reasons=count_reasons(refused),
            partitions=partitions,
            source=origin.about,
            **received.beside,
        )

    return Work(build, declared, runs_case=origin.name == "source")


def _from_log(run: Run, fields: Fields) -> Origin:
    """The prediction log, compacted first."""
    prediction_log.catch_up(run.settings, run.case, dataset.training_window(run.as_of, run.params.dataset))
    outputs = {"version": pl.Int64(), "score": pl.Float64()}

    def read(window: Window) -> Received:
        found = served.read(run.settings, fields, window, run.as_of)
        received = receive(found.rows, fields, window, run.params, within_period=False, extra=outputs)
        return replace(
            received,
            delivered=received.delivered + found.repeats,
            repeats=received.repeats + found.repeats,
            beside={"log": found.fate},
        )

    earliest = served.first_moment(run.settings, run.case) or run.as_of
    why = "the case has a champion: only what was served is learned from"
    if run.params.learns_from_log_alone:
        why = "the case declares it: source.kind is log"
    return Origin("log", read, earliest, {"name": "prediction log", "kind": "log", "why": why})


def _nothing(run: Run, origin: str, received: Received) -> DataError:
    """Why there is no row: none has come yet, which is no fault, or those that came cannot be used, which is one."""
    kept = None
    if received.refused.height:
        name = f"{run.settings.run_dir(run.case, run.as_of).name}-{lake.content_sha256(received.refused)[:12]}"
        kept = lake.set_aside(run.settings, run.case, name, received.refused)
    why = none_usable(received, run.params, origin, kept)
    if why is None and run.params.learns_from_log_alone:
        why = _too_few(run, 0, 0)
    return why or TooFewRows(
        f"{run.case}: the {origin} has no rows before {run.as_of.isoformat()}: choose a later as_of, or check that "
        "rows arrive"
    )


def _too_few(run: Run, rows: int, labelled: int) -> TooFewRows:
    """What a first training lacks where rows come from the log alone: its gate could not say anything of fewer."""
    needed = run.params.dataset.first_rows
    return TooFewRows(
        f"{run.case}: {rows} rows were logged before {run.as_of.isoformat()}, {labelled} of them have a label that has "
        f"arrived, and source.kind log has no others: a first training needs {needed} (dataset.min_holdout by "
        "holdout_share). Wait for rows and labels. The gateway logs rows once there is a champion; until then put "
        "those of what answers today into the prediction log (docs/cases.md), or declare a source that has a history"
    )
