"""headroom: measure what a retraining would gain, by a cheap probe beside the champion on the newest labelled rows."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields, part
from pipelines.contracts import Release, Window
from pipelines.data import dataset
from pipelines.data import log as prediction_log
from pipelines.drift import reference
from pipelines.drift.labels import arrived
from pipelines.drift_report import HEADROOM_FILE, Headroom
from pipelines.fields import SCORES, Fields, frame_schema
from pipelines.headroom import probe
from pipelines.headroom.trial import Rows, lacking, trial
from pipelines.line.facts import HeadroomFacts, ProfileFacts
from pipelines.line.step import Read, Run, Work
from pipelines.text import normalise


def work(run: Run, read: Read) -> Work:
    """Write ``headroom.json`` (:class:`~pipelines.drift_report.Headroom`).

    The window is the drift window ``label_delay_days`` earlier, so that all of its labels are mature and no row is in
    two windows. The champion's answers are the logged ones. The probe learns from the newest labelled rows before the
    window: served ones, and from before the first of these the champion's own. A text that a probe has read leaves the
    window. The key is made of these rows. Whatever is in the way of a figure, a probe that fails included, is a code
    in the facts, and no error.
    """
    params, fields = run.params, load_fields(run.case)
    until, delay = ProfileFacts.of(read["profile"]).window, timedelta(days=params.label_delay_days)
    window = Window(start=until.start - delay, end=until.end - delay)
    champion = ledger.champion_before(run.settings.ledger, run.case, run.as_of)
    first = prediction_log.first_row(run.settings, run.case)
    if champion is None:
        return _told(Headroom(code="no_champion", why="no champion yet: nothing to compare with", window=window))
    if first is None or window.end <= first:
        why = f"nothing was served before {window.end:%Y-%m-%d}: labels take {params.label_delay_days:g} days"
        return _told(Headroom(code="not_served", why=why, window=window))
    rows = _rows(run, fields, champion, window, until.end, first)
    family = probe.family_of(fields, params.headroom.family)
    known = {
        "window": window,
        "coverage": rows.judged.height / max(rows.answered, 1),
        "learned": rows.learned.height,
        "family": family,
        "price": params.headroom.price,
        "confidence": params.headroom.confidence,
    }
    if (missing := lacking(rows, fields, params.headroom.min_rows)) is not None:
        code, why = missing
        return _told(Headroom(code=code, why=why, rows=rows.judged.height, **known))

    def fit(learned: pl.DataFrame) -> probe.Scores:
        if family == "own":
            return part(run.case, "probe").fit(learned, fields)  # type: ignore[no-any-return] # checked when it answers
        return probe.fit(learned, fields, family)

    def measure() -> Headroom:
        return trial(rows, fields, fit, params.gate.slices, params.headroom).model_copy(update=known)

    frames = {"judged": rows.judged, "learned": rows.learned, "past": rows.past}
    made_of = {name: None if frame is None else _hash(frame) for name, frame in frames.items()}
    declared = {"window": window, "version": champion.champion, "family": family, "fields": fields.hash, **made_of}
    return Work(lambda folder, _key: _kept(folder, measure()), declared, runs_case=family == "own")


def _told(found: Headroom) -> Work:
    """That there is no figure, and why."""
    return Work(lambda folder, _key: _kept(folder, found), {"found": found}, runs_case=False)


def _kept(folder: Path, found: Headroom) -> HeadroomFacts:
    (folder / HEADROOM_FILE).write_text(storage.canonical_json(found))
    return HeadroomFacts(code=found.code, why=found.why, rows=found.rows, gain=found.decides, price=found.price)


def _hash(rows: pl.DataFrame) -> str:
    return hashlib.sha256(rows.write_json().encode()).hexdigest()


def _rows(run: Run, fields: Fields, champion: Release, window: Window, until: datetime, first: datetime) -> Rows:
    """The rows of the trial, as they are known at ``until``; ``first`` is when the first one was served."""
    params, most = run.params, run.params.headroom.max_rows
    days = params.headroom.window_days or params.dataset.window_days
    before = Window(start=window.start - timedelta(days=days), end=window.start)
    lines = prediction_log.read_label_lines(run.settings, run.case, until, since=before.start)
    lines = arrived.possible(lines, len(fields.classes))
    age = timedelta(days=params.label_delay_days)

    answered = _whole(prediction_log.read_predictions(run.settings, run.case, window), champion.champion, fields)
    judged = _labelled(answered, lines, until, age, fields)
    learned = _labelled(_older(run, before, lines, 2 * most), lines, until, age, fields)
    train, holdout = _champions(run.settings.root / champion.bundle, champion.candidate_key)
    if train is not None:
        own = pl.concat([frame for frame in (train, holdout) if frame is not None], how="diagonal_relaxed")
        learned = pl.concat([own.filter(pl.col("event_time") < first), learned], how="diagonal_relaxed")
        train = dataset.spread(train, most)
    of = pl.col("event_time").is_between(before.start, before.end, closed="left")
    learned = dataset.spread(learned.filter(of).sort("event_time", "id"), most)
    if fields.text is not None:
        name = fields.text.name
        known = {normalise(text) for frame in (learned, train) if frame is not None for text in frame[name]}
        judged = dataset.without_texts(judged, name, known)
    columns = ["id", "event_time", *fields.names, fields.label]
    past = None if train is None else train.select(columns)
    return Rows(dataset.spread(judged, most), learned.select(columns), past, answered.height)


def _whole(served: pl.DataFrame, version: int, fields: Fields) -> pl.DataFrame:
    """The rows that a version answered, with all of its probabilities."""
    own = served.filter(pl.col("version") == version).drop_nulls("score")
    if not fields.classes:
        return own
    if SCORES not in own.columns:
        return own.clear()
    return own.filter(pl.col(SCORES).list.len() == len(fields.classes))


def _older(run: Run, before: Window, lines: pl.DataFrame, most: int) -> pl.DataFrame:
    """Served rows of the time before the window that have a label, about ``most`` of them, evenly spaced.

    Only these are read from the log: memory does not grow with it.
    """
    ids = lines.sort("label_time", "id")["id"].unique(maintain_order=True)
    few = ids.gather_every(max(1, ids.len() // most)).implode()
    days = prediction_log.days(run.settings, run.case, before)
    if not days:
        return pl.DataFrame(schema={"id": pl.String, "event_time": pl.Datetime("us", "UTC")})
    read = prediction_log.read_days(run.settings, run.case, days, lambda scan: scan.filter(pl.col("id").is_in(few)))
    return pl.concat([rows for _, rows in read], how="diagonal_relaxed")


def _labelled(rows: pl.DataFrame, lines: pl.DataFrame, until: datetime, age: timedelta, fields: Fields) -> pl.DataFrame:
    """The rows with a mature label, as the case's canonical rows have it."""
    known = arrived.mature(rows, arrived.not_early(lines, rows), until, age)
    known = known.with_columns(pl.col("label").cast(pl.Int8).alias(fields.label))
    # A field that was declared later than a row was served is missing in it.
    missing = [
        pl.lit(None, kind).alias(name) for name, kind in frame_schema(fields).items() if name not in known.columns
    ]
    return known.with_columns(missing)


def _champions(bundle: Path, key: str) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """The rows that a champion was trained on, and its holdout; None where they are gone."""
    made = reference.learned_from(storage.find(bundle, key, verify={reference.FILE}))
    if made is None:
        return None, None
    holdout = made / "holdout.parquet"
    return pl.read_parquet(made / "train.parquet"), pl.read_parquet(holdout) if holdout.exists() else None
