"""Which rows a trial is made of: those of the window with a mature label, and what the probes learn from."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipelines import storage
from pipelines.contracts import Release, Window
from pipelines.data import dataset
from pipelines.data import log as prediction_log
from pipelines.drift import reference
from pipelines.drift.labels import arrived
from pipelines.fields import SCORES, Fields, frame_schema, label_type
from pipelines.headroom.trial import ANSWERED, Rows
from pipelines.params import DatasetParams, Params
from pipelines.settings import Settings


class Log(NamedTuple):
    """A case's log of predictions and labels as it was known at ``until``; ``first`` is when a row was first served."""

    settings: Settings
    fields: Fields
    until: datetime
    first: datetime


def chosen(log: Log, params: Params, champion: Release, window: Window) -> Rows:
    """The rows of a trial of ``champion`` on ``window``, at most ``headroom.max_rows`` of each kind."""
    fields, most = log.fields, params.headroom.max_rows
    of_training = params.dataset.model_copy(update={"max_rows": most})
    if params.headroom.window_days is not None:
        of_training = of_training.model_copy(update={"window_days": params.headroom.window_days})
    train, holdout = _champions(log.settings.root / champion.bundle, champion.candidate_key)

    served = prediction_log.read_predictions(log.settings, fields.case, window)
    if fields.classes and SCORES not in served.columns:
        served = served.with_columns(pl.lit(None, pl.List(pl.Float64)).alias(SCORES))
    served = served.with_columns(_answered(champion.champion, fields).alias(ANSWERED))
    # Where its rows are gone, only what the champion answered is sure to be newer than they.
    newer = pl.col(ANSWERED) if train is None else pl.col("event_time") > train["event_time"].max()
    served = served.filter(newer)
    learned = _older(log, params, of_training, Window(start=log.first, end=window.start), served["id"])
    if train is not None:
        own = pl.concat([frame for frame in (train, holdout) if frame is not None], how="diagonal_relaxed")
        learned = pl.concat([own.filter(pl.col("event_time") < log.first), learned], how="diagonal_relaxed")
        train = dataset.spread(train, most)
    learned, _, _ = dataset.choose(learned, fields.label, window.start, of_training)
    judged = _labelled(log, params, served, _lines(log, window.start))
    ripe = judged.height
    if fields.repeats:
        judged = dataset.without_repeats(judged, fields.repeats, dataset.known_rows((learned, train), fields.repeats))
    columns = ["id", "event_time", *fields.names, fields.label]
    # What was answered, and not when it was received or by which request: equal rows have equal keys anywhere.
    answers = ["score", *([SCORES] if fields.classes else []), ANSWERED]
    judged = dataset.spread(judged, most).select([*columns, *answers])
    past = None if train is None else _with_all(train, fields).select(columns)
    return Rows(judged, learned.select(columns), past, served.height, ripe)


def _answered(version: int, fields: Fields) -> pl.Expr:
    """Whether a version answered a row, with all of its probabilities."""
    own = (pl.col("version") == version) & pl.col("score").is_not_null()
    if not fields.classes:
        return own
    return own & (pl.col(SCORES).list.len() == len(fields.classes)).fill_null(value=False)


def _lines(log: Log, since: datetime) -> pl.DataFrame:
    """The label lines of rows since ``since``."""
    lines = prediction_log.read_label_lines(log.settings, log.fields.case, log.until, since=since)
    return arrived.possible(lines, log.fields.target)


def _older(log: Log, params: Params, of_training: DatasetParams, span: Window, judged: pl.Series) -> pl.DataFrame:
    """Served rows of ``span`` with their labels, enough to choose from; those to be ``judged`` are none of them.

    By ids that the labels name, so that memory does not grow with the log: those of the window that a training looks
    at, evenly spaced, and where they are too few for it the newest ones, however old.
    """
    most = 2 * (of_training.max_rows or of_training.fallback_rows)
    start = max(span.start, span.end - timedelta(days=of_training.window_days))
    lines = _lines(log, start)
    ids = _ids(lines, judged)
    few = ids.gather_every(max(1, ids.len() // most))
    found = _labelled(log, params, _read(log, Window(start=start, end=span.end), few), lines)
    if found.height >= of_training.min_rows or start == span.start:
        return found
    lines = _lines(log, span.start)
    newest = _ids(lines, judged).tail(4 * of_training.fallback_rows)
    return _labelled(log, params, _read(log, span, newest), lines)


def _ids(lines: pl.DataFrame, without: pl.Series) -> pl.Series:
    """The ids that label lines name, each once, by when the first label came."""
    ids = lines.sort("label_time", "id")["id"].unique(maintain_order=True)
    return ids.filter(~ids.is_in(without.implode()))


def _read(log: Log, span: Window, ids: pl.Series) -> pl.DataFrame:
    """The served rows of ``span`` with these ids."""
    days = prediction_log.days(log.settings, log.fields.case, span)
    if not days:
        return pl.DataFrame(schema={"id": pl.String, "event_time": pl.Datetime("us", "UTC")})
    wanted = pl.col("id").is_in(ids.implode())
    read = prediction_log.read_days(log.settings, log.fields.case, days, lambda scan: scan.filter(wanted))
    rows = pl.concat([of_day for _, of_day in read], how="diagonal_relaxed")
    return rows.filter(pl.col("event_time").is_between(span.start, span.end, closed="left"))


def _labelled(log: Log, params: Params, rows: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The rows with a mature label, as the case's canonical rows have it."""
    age = timedelta(days=params.label_delay_days)
    known = arrived.mature(rows, arrived.not_early(lines, rows), log.until, age)
    known = known.with_columns(pl.col("label").cast(label_type(log.fields)).alias(log.fields.label))
    return _with_all(known, log.fields)


def _with_all(rows: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The rows with all canonical columns: a field that was declared later than a row was served is missing in it."""
    schema = frame_schema(fields)
    return rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in rows.columns
    )


def _champions(bundle: Path, key: str) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """The rows that a champion was trained on, and its holdout; None where they are gone."""
    made = reference.learned_from(storage.find(bundle, key, verify={reference.FILE}))
    if made is None:
        return None, None
    holdout = made / "holdout.parquet"
    return pl.read_parquet(made / "train.parquet"), pl.read_parquet(holdout) if holdout.exists() else None
