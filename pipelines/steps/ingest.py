"""ingest: bring the rows that this run may need into immutable day partitions.

Before a case's first champion rows come from its source; afterwards the loop is closed: only rows that
went through the gateway, with the labels that have arrived by as_of, and the source is not even opened
(unless the case declares ``training_rows: source``). A case whose declared source is the log has no other rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger
from pipelines.cases import load_fields, part
from pipelines.cases.delivery import Origin, from_source, none_usable, whole
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.contracts import Window
from pipelines.data import dataset, lake, served
from pipelines.data import log as prediction_log
from pipelines.errors import DataError, TooFewRows
from pipelines.fields import Fields
from pipelines.installation import PROGRAM
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

    taken = _take(run, fields, origin)
    refused = dataset.known_at(taken.apart.refused, fields.label, as_of)
    if not taken.rows:
        raise _nothing(run, origin.name, taken.apart)
    if params.learns_from_log_alone and first_run and taken.labelled < params.dataset.first_rows:
        raise _too_few(run, taken.rows, taken.labelled)
    window = dataset.training_window(as_of, params.dataset)
    declared: dict[str, Any] = {
        "origin": origin.name,
        "window": window,
        "partitions": [[p["date"], p["sha256"]] for p in taken.partitions],
    }
    if refused.height:
        declared["refused"] = lake.content_sha256(refused)

    def build(folder: Path, _key: str) -> IngestFacts:
        if refused.height:
            refused.write_parquet(folder / QUARANTINE, compression="zstd")
        return IngestFacts(
            origin=origin.name,
            window=window,
            rows=taken.rows,
            labelled=taken.labelled,
            counts=taken.apart.counts | {"rows": taken.rows},
            reasons=count_reasons(refused),
            partitions=taken.partitions,
            source=origin.about,
            **taken.apart.beside,
        )

    return Work(build, declared, runs_case=origin.name == "source")


@dataclass(frozen=True)
class _Taken:
    """What a run takes of a delivery: ``rows`` of whole days in ``partitions``, and what is ``apart`` from them."""

    rows: int
    labelled: int
    partitions: list[dict[str, Any]]
    apart: Received


def _take(run: Run, fields: Fields, origin: Origin) -> _Taken:
    """Write whole event days up to ``as_of``.

    At least the window's, and no more than it takes to reach the first needed one. Days are written as they come, so
    that only some of them are held. A day that is read and not needed is not written.
    """
    params, as_of = run.params.dataset, run.as_of
    days = params.window_days
    while True:
        start = datetime.combine((as_of - timedelta(days=days)).date(), time(0), UTC)
        partitions: list[dict[str, Any]] = []
        apart: list[Received] = []
        labelled: Counter[date] = Counter()
        first = None
        for piece in origin.parts(Window(start=start, end=as_of)):
            known = replace(piece, rows=dataset.known_at(piece.rows, fields.label, as_of))
            labelled.update(dataset.labelled_on(known.rows, fields.label))
            first = dataset.first_needed_day(labelled, as_of, params)
            needed = known if first is None else known.since(first)
            partitions += lake.write_days(run.settings, run.case, needed.rows)
            apart.append(replace(needed, rows=needed.rows.clear()))
            del piece, known, needed  # nothing of these days is held while the next ones are read
        if first is not None or start <= origin.earliest:
            kept = [day for day in labelled if first is None or day >= first.date()]
            return _Taken(
                rows=sum(partition["rows"] for partition in partitions),
                labelled=sum(labelled[day] for day in kept),
                partitions=sorted(partitions, key=lambda partition: str(partition["date"])),
                apart=whole(apart),
            )
        days *= 4


def _from_log(run: Run, fields: Fields) -> Origin:
    """The prediction log, compacted first."""
    prediction_log.catch_up(run.settings, run.case, dataset.training_window(run.as_of, run.params.dataset))
    outputs = {"version": pl.Int64(), "score": pl.Float64()}

    def parts(window: Window) -> Iterator[Received]:
        found = served.read(run.settings, fields, window, run.as_of)
        received = receive(found.rows, fields, window, run.params, within_period=False, extra=outputs)
        yield replace(
            received,
            delivered=received.delivered + found.repeats,
            repeats=received.repeats + found.repeats,
            beside={"log": found.fate},
        )

    earliest = served.first_moment(run.settings, run.case) or run.as_of
    why = "the case has a champion: only what was served is learned from"
    if run.params.learns_from_log_alone:
        why = "the case declares it: source.kind is log"
    return Origin("log", parts, earliest, {"name": "prediction log", "kind": "log", "why": why})


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
        "holdout_share). Wait for rows and labels. The gateway logs rows once there is a champion; until then "
        f"`{PROGRAM} import {run.case} --from ...` takes in those of what answers today, or declare a source with a "
        "history (docs/cases.md)"
    )
