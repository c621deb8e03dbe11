"""The rows that the gateway served, as rows to learn from: with the labels that had arrived, and counted.

What is few is joined at once. Else days are read some at a time, the newest first. A row's labels may have come on any
later day, so labels are put down by the day of their row first: in between by hashes of ids, so that all lines of an id
lie together. Rows whose id is logged more than once are held, as each counts once in the whole window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
from more_itertools import constrained_batches

from pipelines.contracts import Window
from pipelines.data import heap, log, repeats, sorting
from pipelines.data.sorting import Sorted
from pipelines.fields import Fields, frame_schema
from pipelines.files import make_folder, work_folder
from pipelines.settings import Settings

TOGETHER = 4 << 20
"""Bytes of compacted files that are read at once, if no single day has more; a row takes some times as much then."""
_LINE = 256
"""Bytes for an id with what is matched by it, twice, in memory."""


@dataclass(frozen=True)
class Served:
    """``rows`` of whole days, one for each prediction, with the fields as they were logged and the known labels.

    ``repeats`` more lines are of the same predictions. ``fate`` says what became of the log's ``lines`` as a whole, and
    of the ``labels`` that arrived since the window's first day. Both are those of the whole window, and stand beside
    its newest rows.
    """

    rows: pl.DataFrame
    repeats: int = 0
    fate: dict[str, Any] = field(default_factory=dict)


def first_moment(settings: Settings, case: str) -> datetime | None:
    """The beginning of the first day on which anything was served; None if nothing was yet."""
    day = log.first_day(settings, case)
    if day is None:
        return None
    return datetime.combine(day, time(0), UTC)


def read(settings: Settings, fields: Fields, window: Window, as_of: datetime) -> Iterator[Served]:
    """What was served in ``window``, with the labels that had arrived by ``as_of``.

    Parts of whole days, the newest first; one at least.
    """
    files = log.near(settings, fields.case, window)
    files += log.label_files(settings, fields.case, as_of, since=window.start)
    parts = _at_once if _size(files) <= TOGETHER else _by_days
    for found in parts(settings, fields, window, as_of):
        # A field that was declared later than a row was served is missing in it: validation says so.
        missing = [name for name in frame_schema(fields) if name not in found.rows.columns]
        yield Served(found.rows.with_columns(pl.lit(None).alias(name) for name in missing), found.repeats, found.fate)


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _at_once(settings: Settings, fields: Fields, window: Window, as_of: datetime) -> Iterator[Served]:
    case = fields.case
    labels = log.read_labels(settings, case, as_of, since=window.start)
    answered = log.read_predictions(settings, case, window)
    known = labels.select("id", "label_time", pl.col("label").alias(fields.label))
    lines = log.count(settings, case, "predictions", window.start, window.end)
    arrived = log.count(settings, case, "labels", window.start, as_of)
    used = labels.join(answered.select("id"), on="id", how="semi").height
    fate = _fate(settings, case, arrived, labels.height, used)
    yield Served(answered.join(known, on="id", how="left"), lines - answered.height, fate)


def _fate(settings: Settings, case: str, arrived: int, best: int, used: int) -> dict[str, Any]:
    """What became of all lines, and of ``arrived`` labels: the ``best`` of each id, and those ``used`` for a row."""
    # Labels of no row are an older row's, or those of an id that was never served.
    labels = {"lines": arrived, "used": used, "superseded": arrived - best, "of_no_row": best - used}
    return {"lines": log.fate(settings, case), "labels": labels}


# --- by days ------------------------------------------------------------------------------------


def _by_days(settings: Settings, fields: Fields, window: Window, as_of: datetime) -> Iterator[Served]:
    case = fields.case
    near = log.near(settings, case, window)
    moment = pl.col("event_time")
    inside = (moment >= window.start) & (moment < window.end)
    again = repeats.hashed().is_in(pl.Series(repeats.repeated(near)).implode())
    held = log.read_predictions(settings, case, window, each=lambda scan: scan.filter(again))
    # As all files together have them: what a value is read as does not hang on what is read with it.
    kinds = log.read_predictions(settings, case, window, each=lambda scan: scan.head(0))
    lines = log.count(settings, case, "predictions", window.start, window.end)
    id_and_day = (pl.col("id"), moment.dt.date().alias("day"))

    def once(files: Sequence[Path], within: pl.Expr, *columns: pl.Expr) -> pl.DataFrame:
        def each(scan: pl.LazyFrame) -> pl.LazyFrame:
            rows = scan.filter(within & ~again)
            return rows.select(columns) if columns else rows

        return log.lines(settings, case, "predictions", files, each)

    make_folder(settings.lake_dir / case)
    with work_folder(settings.lake_dir / case / "scratch") as folder:
        ids = chain(
            [held.select(id_and_day)],
            (once(some, inside, *id_and_day).select("id", "day") for some in _together(near)),
        )
        labels = _labels(settings, fields, window, as_of, ids, lines, folder)
        repeated, fate = lines - labels.rows, _fate(settings, case, labels.arrived, labels.best, labels.used)
        for days in _stretches(settings, case, window):
            own = moment.dt.date().is_between(days[0], days[-1])
            found = once(_files(settings, case, days), inside & own)
            rows = pl.concat([kinds, found, held.filter(own)], how="diagonal_relaxed")
            known = sorting.take(labels.of_days, days[0], days[-1])
            if known is None:
                known = labels.none
            yield Served(rows.select(kinds.columns).join(known, on="id", how="left"), repeated, fate)
            repeated, fate = 0, {}


def _together(files: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Files, as many together as are small."""
    return constrained_batches(files, TOGETHER, get_len=lambda file: _size([file]), strict=False)


def _stretches(settings: Settings, case: str, window: Window) -> Iterator[list[date]]:
    """The days of a window, as many together as have small files, the newest last and first; one at least."""
    newest_first = reversed(log.days(settings, case, window) or [window.start.date()])

    def size(day: date) -> int:
        return _size(_files(settings, case, [day]))

    return map(sorted, constrained_batches(newest_first, TOGETHER, get_len=size, strict=False))


def _files(settings: Settings, case: str, days: Sequence[date]) -> list[Path]:
    found: dict[Path, None] = {}
    for day in days:
        hours, spread = log.partitions(settings, case, day)
        found |= dict.fromkeys(file for files in hours.values() for file in files) | dict.fromkeys(spread)
    return list(found)


@dataclass(frozen=True)
class _Labels:
    """The labels of rows by the days of those, with their form (``none``), and what was counted on the way.

    Counted are ``rows``, and of the labels those that ``arrived``, are the ``best`` of their id, and are ``used``.
    """

    of_days: list[Sorted]
    none: pl.DataFrame
    rows: int
    arrived: int
    best: int
    used: int


def _labels(
    settings: Settings,
    fields: Fields,
    window: Window,
    as_of: datetime,
    ids: Iterable[pl.DataFrame],
    lines: int,
    folder: Path,
) -> _Labels:
    """Find the labels of rows: ``ids`` are those of all rows, with their ``day``, of about as many ``lines``."""
    case = fields.case
    files = log.label_files(settings, case, as_of, since=window.start)
    # What a label takes compressed is a part of this.
    buckets = 1 + (_LINE * lines + 4 * _size(files)) // heap.AT_ONCE
    bucket = (repeats.hashed() % buckets).cast(pl.UInt32).alias("bucket")
    rows = sorting.lay_down((some.with_columns(bucket) for some in ids), "bucket", folder / "ids")
    found = (log.label_lines(settings, case, some, as_of, since=window.start) for some in _together(files))
    arrived = sorting.lay_down((some.with_columns(bucket) for some in found), "bucket", folder / "labels")
    label = log.lines(settings, case, "labels", files, lambda scan: scan.head(0)).select(
        "id", "label_time", pl.col("label").alias(fields.label)
    )
    counts: Counter[str] = Counter()

    def matched() -> Iterator[pl.DataFrame]:
        for number in range(buckets):
            own, known = (sorting.take(laid, number, number) for laid in (arrived, rows))
            if own is None:
                continue
            best = log.best(log.in_order(own))
            counts["best"] += best.height
            if known is not None:
                labels = best.select("id", "label_time", pl.col("label").cast(label.schema[fields.label]))
                labels = labels.rename({"label": fields.label}).join(known, on="id")
                counts["used"] += labels.height
                yield labels

    of_days = sorting.lay_down(matched(), "day", folder / "days")
    return _Labels(of_days, label, sorting.height(rows), sorting.height(arrived), counts["best"], counts["used"])
