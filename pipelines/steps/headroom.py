"""headroom: measure what a retraining would gain, by a cheap probe beside the champion on the newest labelled rows."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields, part
from pipelines.contracts import Release, Window
from pipelines.data import dataset
from pipelines.data import log as prediction_log
from pipelines.data.lake import content_sha256
from pipelines.drift import reference
from pipelines.drift.labels import arrived
from pipelines.drift_report import HEADROOM_FILE, Headroom
from pipelines.fields import SCORES, Fields, frame_schema
from pipelines.headroom import probe
from pipelines.headroom.trial import ANSWERED, Rows, lacking, trial
from pipelines.line.facts import HeadroomFacts, ProfileFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import DatasetParams
from pipelines.text import normalise


def work(run: Run, read: Read) -> Work:
    """Write ``headroom.json`` (:class:`~pipelines.drift_report.Headroom`).

    The window is the drift window ``label_delay_days`` earlier, so that all of its labels are mature and no row is in
    two windows; rows that are not newer than what the champion was trained on are left out. The probe learns from the
    labelled rows that a training at the window's start would choose: served ones, and from before the first of these
    the champion's own. A text that a probe has read leaves the window. The key is made of these rows. Whatever is in
    the way of a figure, a probe that fails included, is a code in the facts, and no error.
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
        "coverage": rows.labelled / max(rows.served, 1),
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
    made_of = {name: None if frame is None else content_sha256(frame) for name, frame in frames.items()}
    declared = {"window": window, "version": champion.champion, "family": family, "fields": fields.hash, **made_of}
    return Work(lambda folder, _key: _kept(folder, measure()), declared, runs_case=family == "own")


def _told(found: Headroom) -> Work:
    """That there is no figure, and why."""
    return Work(lambda folder, _key: _kept(folder, found), {"found": found}, runs_case=False)


def _kept(folder: Path, found: Headroom) -> HeadroomFacts:
    (folder / HEADROOM_FILE).write_text(storage.canonical_json(found))
    return HeadroomFacts(code=found.code, why=found.why, rows=found.rows, gain=found.decides, price=found.price)


def _rows(run: Run, fields: Fields, champion: Release, window: Window, until: datetime, first: datetime) -> Rows:
    """The rows of the trial, as they are known at ``until``; ``first`` is when the first one was served."""
    params = run.params.dataset.model_copy(update={"max_rows": run.params.headroom.max_rows})
    if run.params.headroom.window_days is not None:
        params = params.model_copy(update={"window_days": run.params.headroom.window_days})
    train, holdout = _champions(run.settings.root / champion.bundle, champion.candidate_key)

    served = prediction_log.read_predictions(run.settings, run.case, window)
    served = served.with_columns(_answered(served, champion.champion, fields).alias(ANSWERED))
    # Where its rows are gone, only what the champion answered is sure to be newer than they.
    newer = pl.col(ANSWERED) if train is None else pl.col("event_time") > train["event_time"].max()
    served = served.filter(newer)
    learned = _older(run, fields, Window(start=first, end=window.start), until, params, served["id"])
    if train is not None:
        own = pl.concat([frame for frame in (train, holdout) if frame is not None], how="diagonal_relaxed")
        learned = pl.concat([own.filter(pl.col("event_time") < first), learned], how="diagonal_relaxed")
        train = dataset.spread(train, run.params.headroom.max_rows)
    learned, _, _ = dataset.choose(learned, fields.label, window.start, params)
    judged = _labelled(run, fields, served, _lines(run, fields, until, window.start), until)
    ripe = judged.height
    if fields.text is not None:
        name = fields.text.name
        known = {normalise(text) for frame in (learned, train) if frame is not None for text in frame[name]}
        judged = dataset.without_texts(judged, name, known)
    columns = ["id", "event_time", *fields.names, fields.label]
    past = None if train is None else train.select(columns)
    return Rows(
        dataset.spread(judged, run.params.headroom.max_rows), learned.select(columns), past, served.height, ripe
    )


def _answered(served: pl.DataFrame, version: int, fields: Fields) -> pl.Expr:
    """Whether a version answered a row, with all of its probabilities."""
    own = (pl.col("version") == version) & pl.col("score").is_not_null()
    if not fields.classes:
        return own
    if SCORES not in served.columns:
        return pl.lit(value=False)
    return own & (pl.col(SCORES).list.len() == len(fields.classes)).fill_null(value=False)


def _lines(run: Run, fields: Fields, until: datetime, since: datetime) -> pl.DataFrame:
    """The label lines that were known at ``until``, of rows since ``since``."""
    lines = prediction_log.read_label_lines(run.settings, run.case, until, since=since)
    return arrived.possible(lines, len(fields.classes))


def _older(
    run: Run, fields: Fields, span: Window, until: datetime, params: DatasetParams, judged: pl.Series
) -> pl.DataFrame:
    """Served rows of ``span`` with their labels, enough to choose from; those to be ``judged`` are none of them.

    By ids that the labels name, so that memory does not grow with the log: those of the window that a training looks
    at, evenly spaced, and where they are too few for it the newest ones, however old.
    """
    most = 2 * (params.max_rows or params.fallback_rows)
    start = max(span.start, span.end - timedelta(days=params.window_days))
    lines = _lines(run, fields, until, start)
    ids = _ids(lines, judged)
    few = ids.gather_every(max(1, ids.len() // most))
    found = _labelled(run, fields, _read(run, Window(start=start, end=span.end), few), lines, until)
    if found.height >= params.min_rows or start == span.start:
        return found
    lines = _lines(run, fields, until, span.start)
    newest = _ids(lines, judged).tail(4 * params.fallback_rows)
    return _labelled(run, fields, _read(run, span, newest), lines, until)


def _ids(lines: pl.DataFrame, without: pl.Series) -> pl.Series:
    """The ids that label lines name, each once, by when the first label came."""
    ids = lines.sort("label_time", "id")["id"].unique(maintain_order=True)
    return ids.filter(~ids.is_in(without.implode()))


def _read(run: Run, span: Window, ids: pl.Series) -> pl.DataFrame:
    """The served rows of ``span`` with these ids."""
    days = prediction_log.days(run.settings, run.case, span)
    if not days:
        return pl.DataFrame(schema={"id": pl.String, "event_time": pl.Datetime("us", "UTC")})
    wanted = pl.col("id").is_in(ids.implode())
    read = prediction_log.read_days(run.settings, run.case, days, lambda scan: scan.filter(wanted))
    rows = pl.concat([of_day for _, of_day in read], how="diagonal_relaxed")
    return rows.filter(pl.col("event_time").is_between(span.start, span.end, closed="left"))


def _labelled(run: Run, fields: Fields, rows: pl.DataFrame, lines: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """The rows with a mature label, as the case's canonical rows have it."""
    age = timedelta(days=run.params.label_delay_days)
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
