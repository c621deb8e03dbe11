"""Which labelled rows train a candidate and which judge it: pure functions on canonical rows.

The window rule: the labelled rows whose event lies in the newest ``window_days`` before as_of; if they are
fewer than ``min_rows``, the newest ``fallback_rows`` labelled rows before as_of instead. The newest
``holdout_share`` of the rows chosen is the holdout, without any row that the champion was trained on:
both models are judged on rows that neither has seen.

Rows from before those chosen serve two declared ends: a replay share of the training rows, against forgetting
(experience replay: Robins, Connection Science 7(2), 1995), and a history holdout that shows what was forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import Window
from pipelines.fields import Fields
from pipelines.params import DatasetParams
from pipelines.text import normalise

Rule = Literal["window", "fallback"]
Ids = Callable[[pl.DataFrame], Iterable[pl.Series]]
"""The ids of rows in their order, some at once."""
Known = tuple[str, str]
"""A text, and the values beside it as they are written."""


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to judge on; ``excluded`` counts rows left out of the holdout.

    ``replayed`` of the training rows, and all of ``history``, are older than the others.
    """

    train: pl.DataFrame
    holdout: pl.DataFrame
    excluded: int
    replayed: int
    history: pl.DataFrame


def training_window(as_of: datetime, params: DatasetParams) -> Window:
    """The newest ``window_days`` of event time before ``as_of``."""
    return Window(start=as_of - timedelta(days=params.window_days), end=as_of)


def known_at(rows: pl.DataFrame, label: str, as_of: datetime) -> pl.DataFrame:
    """The rows as they were known at ``as_of``: without labels that arrived later, and without their time."""
    arrived = pl.col("label_time") <= as_of
    return rows.with_columns(pl.when(arrived).then(pl.col(name)).alias(name) for name in (label, "label_time"))


def labelled_on(rows: pl.DataFrame, label: str) -> dict[date, int]:
    """How many rows of each day have their label."""
    labelled = rows.select("event_time", label).filter(pl.col(label).is_not_null())
    days = labelled.group_by(pl.col("event_time").dt.date()).len()
    return dict(days.iter_rows())


def first_needed_day(labelled: Mapping[date, int], as_of: datetime, params: DatasetParams) -> datetime | None:
    """Midnight of the oldest day that either rule can need, or None if rows do not reach far enough back.

    ``labelled`` counts the rows that have their label, by day. The day is the older of the window's first one and that
    of the ``fallback_rows``-th newest labelled row, with room for the share of rows that validation may take out.
    Replay and history look back to the beginning.
    """
    if params.replay_share or params.history_rows:
        return None
    wanted = math.ceil(params.fallback_rows / max(1e-9, 1 - params.max_bad_share))
    start = training_window(as_of, params).start
    for day in sorted(labelled, reverse=True):
        wanted -= labelled[day]
        if wanted <= 0:
            return datetime.combine(min(day, start.date()), time(0), start.tzinfo)
    return None


def choose(
    frame: pl.DataFrame, label: str, as_of: datetime, params: DatasetParams
) -> tuple[pl.DataFrame, pl.DataFrame, Rule]:
    """The rows chosen, the labelled rows before them, and which rule chose.

    Those chosen are the labelled rows of the window, or of the fallback, at most ``max_rows``. Both are sorted by
    event_time and id.
    """
    chosen, older, rule = by_rule(frame, label, as_of, params)
    return thinned(chosen, params), older, rule


def by_rule(
    frame: pl.DataFrame, label: str, as_of: datetime, params: DatasetParams
) -> tuple[pl.DataFrame, pl.DataFrame, Rule]:
    """What :func:`choose` gives, before any rows are thinned out."""
    labelled = _in_order(frame.filter(pl.col(label).is_not_null() & (pl.col("event_time") < as_of)))
    recent = labelled.filter(pl.col("event_time") >= training_window(as_of, params).start)
    rule: Rule = "window"
    chosen = recent
    if recent.height < params.min_rows:
        rule = "fallback"
        chosen = labelled.tail(params.fallback_rows)
    return chosen, labelled.head(labelled.height - chosen.height), rule


def thinned(rows: pl.DataFrame, params: DatasetParams, ids: Ids | None = None) -> pl.DataFrame:
    """At most ``max_rows`` of the rows. ``ids`` gives their ids where the column ``id`` only stands for them."""
    most = params.max_rows or rows.height
    if params.sampling == "hash":
        return sampled(rows, most, ids or _own)
    return spread(rows, most)


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """By event_time and id; themselves if they are, as sorting takes more memory than they do."""
    time, own = pl.col("event_time"), pl.col("id")
    after = (time.shift() < time) | ((time.shift() == time) & (own.shift() <= own))
    if rows.select(after.all()).item():
        return rows
    return rows.sort("event_time", "id")


def rows_per_day(frame: pl.DataFrame, chosen: pl.DataFrame) -> float | None:
    """How many rows of ``frame`` came on a day with rows, in the time of the ``chosen`` ones.

    They count labelled or not, before any were thinned out. None without chosen rows.
    """
    if chosen.is_empty():
        return None
    times = frame["event_time"].filter(
        frame["event_time"].is_between(chosen["event_time"].min(), chosen["event_time"].max())
    )
    return times.len() / times.dt.date().n_unique()


def spread(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most ``most`` of the rows, evenly spaced in their order, so that a thinned window still spans the window."""
    if rows.height <= most:
        return rows
    return rows[[position * rows.height // most for position in range(most)]]


def sampled(rows: pl.DataFrame, most: int, ids: Ids) -> pl.DataFrame:
    """The ``most`` rows whose ids have the smallest hashes, in their order.

    The hash is of the id alone and the same on every machine (BLAKE2b, RFC 7693). Fewer rows are always among more, and
    hashes know nothing of time: days are thinned alike. This is bottom-k sampling (Cohen and Kaplan, PODC 2007).
    """
    if rows.height <= most:
        return rows
    hashes = np.concatenate([_hashed(some) for some in ids(rows)])
    kept = np.zeros(rows.height, bool)
    kept[np.argsort(hashes, kind="stable")[:most]] = True
    return rows.filter(pl.Series(kept))


def _hashed(ids: pl.Series) -> NDArray[np.uint64]:
    found = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in ids)
    return np.frombuffer(found, ">u8").astype(np.uint64)


def _own(rows: pl.DataFrame) -> Iterable[pl.Series]:
    return [rows["id"]]


def split(
    rows: pl.DataFrame,
    older: pl.DataFrame,
    params: DatasetParams,
    trained_on: pl.DataFrame | None = None,
    repeats: Sequence[str] = (),
) -> Split:
    """Split sorted rows by time.

    ``trained_on`` (the champion's rows, by ``id``) leave the holdout, and do not come back as training rows. A row
    that repeats a training row, or one of the champion's, in a text and what is beside it
    (:attr:`pipelines.fields.Fields.repeats`) leaves the holdout too: it would be judged by memory. Replayed and
    history rows are spread over ``older`` and never the same; history has none that the champion knows.
    """
    known_ids = None
    if trained_on is not None:
        known_ids = trained_on["id"]
    newest = round(rows.height * params.holdout_share)
    recent = rows.head(rows.height - newest)
    holdout = rows.tail(newest)
    history = spread(_without(older, known_ids), params.history_rows)
    wanted = round(recent.height * params.replay_share / (1 - params.replay_share))
    replayed = spread(_without(older, history["id"]), wanted)
    train = pl.concat([replayed, recent])
    unseen = _without(holdout, known_ids)
    if repeats:
        known = known_rows((train, trained_on), repeats)
        unseen = without_repeats(unseen, repeats, known)
        history = without_repeats(history, repeats, known)
    return Split(train, unseen, holdout.height - unseen.height, replayed.height, history)


def _without(rows: pl.DataFrame, ids: pl.Series | None) -> pl.DataFrame:
    if ids is None:
        return rows
    return rows.filter(~pl.col("id").is_in(ids.implode()))


def known_rows(frames: Iterable[pl.DataFrame | None], repeats: Sequence[str]) -> set[Known]:
    """The rows of several frames, as :func:`without_repeats` compares them; None is a frame that is gone."""
    return {own for frame in frames if frame is not None for own in _told_by(frame, repeats) if own is not None}


def without_repeats(rows: pl.DataFrame, repeats: Sequence[str], known: set[Known]) -> pl.DataFrame:
    """The rows that are not ``known`` by what they have of ``repeats``: their text, once normalised, and the others.

    What is known would be judged by memory. Nobody remembers a row by a text that is missing.
    """
    return rows.filter([own is None or own not in known for own in _told_by(rows, repeats)])


def _told_by(rows: pl.DataFrame, repeats: Sequence[str]) -> list[Known | None]:
    """What a row is known by, with no names of columns that another declaration of the case did not have."""
    text, *others = repeats
    there = [name for name in others if name in rows.columns]
    beside = rows.select(there).rows() if there else [()] * rows.height
    return [None if own is None else (normalise(own), repr(more)) for own, more in zip(rows[text], beside, strict=True)]


def balance(split: Split, fields: Fields) -> dict[str, Any]:
    """How often the positive class occurs; with classes ``positives`` are the rows outside of the commonest one.

    A class's base rate counts one row more than there are: one without training rows is improbable, not impossible.
    Of a number the base rate is the training rows' mean, with its deviation ``label_sd``, and ``positives`` are the
    rows of another value than the commonest one.
    """
    train, holdout = split.train[fields.label], split.holdout[fields.label]
    classes = fields.classes
    if fields.number is not None:
        return {
            "positives": uncommon(train),
            "holdout_positives": uncommon(holdout),
            "base_rate": train.mean(),
            "label_sd": train.std(ddof=0),
        }
    if not classes:
        positives = int(train.sum())
        return {"positives": positives, "holdout_positives": int(holdout.sum()), "base_rate": positives / train.len()}
    counts = [int((train == position).sum()) for position in range(len(classes))]
    largest = max(int((holdout == position).sum()) for position in range(len(classes)))
    return {
        "positives": train.len() - max(counts),
        "holdout_positives": holdout.len() - largest,
        "class_counts": dict(zip(classes, counts, strict=True)),
        "base_rate": [(count + 1) / (train.len() + len(counts)) for count in counts],
    }


def uncommon(labels: pl.Series) -> int:
    """How many labels are another one than the commonest: none if all are equal.

    >>> uncommon(pl.Series([2.5, 2.5, 4.0])), uncommon(pl.Series([], dtype=pl.Float64))
    (1, 0)
    """
    counts = labels.value_counts()["count"]
    return labels.len() - (int(counts.max()) if counts.len() else 0)  # type: ignore[arg-type] # a whole number
