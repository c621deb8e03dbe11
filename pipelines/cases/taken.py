"""The rows of a database that were taken in before, so that they are not asked for again: what a watermark is for.

Rows lie by event day below ``<state>/data/sources/<case>/``: a Parquet file and a record for each day. The record says
up to which watermark the day is whole: all rows are in that could be seen while the table's newest watermark was this
one. Only rows with a newer one, or one that is older by no more than the declared overlap, are asked for later; of one
id the row with the newest watermark counts. A day is there whole or not at all, so a reading that broke off goes on
where it stopped, and a day that is missing or damaged is read again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from itertools import groupby
from pathlib import Path

import polars as pl

from pipelines.cases import columns
from pipelines.cases.columns import DAY, MARK, MOMENT, PIECE, Asked
from pipelines.contracts import Window
from pipelines.errors import DataError, Unavailable
from pipelines.faults import said
from pipelines.files import file_sha256, make_folder, write_atomic
from pipelines.provenance import wall_time
from pipelines.storage import failpoint

FORMAT = 1
"""Of what is kept; raised when a reader of before could not use it."""
TRIES = 3
NEVER = datetime.min.replace(tzinfo=UTC)
"""The mark of a day that is never whole: the table has no watermark yet."""
PAUSE_SECONDS = 1.0
"""Between the first two tries, twice as long between the next: a connection that broke may be back at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """How rows are asked for. ``where`` names the table in messages, ``identity`` tells it from every other one.

    ``bounds`` gives the newest watermark and the oldest and newest event time, None where there is none. ``dated``
    gives the rows of ``asked.window``, but for some hours in the order of their event time: of those without a bound
    all, else those that have a watermark of at least that, or none. ``undated`` gives the rows without event time.
    """

    where: str
    identity: str
    bounds: Callable[[], tuple[datetime | None, datetime | None, datetime | None]]
    dated: Callable[[Asked, datetime | None], Iterator[pl.DataFrame]]
    undated: Callable[[], Iterator[pl.DataFrame]]


@dataclass(frozen=True)
class Kept:
    """One day's record. ``sha256`` is that of its file's bytes; empty: the day has no rows."""

    mark: datetime
    rows: int = 0
    sha256: str = ""


def folder_of(sources: Path, asked: Asked, identity: str) -> Path:
    """Where the rows of one table lie as they are read now: another declaration reads them anew."""
    declared = asked.declared.model_dump(mode="json", exclude={"watermark": {"overlap_hours"}, "notice": True})
    kinds = [(field.name, type(field).__name__) for field in asked.fields.fields]
    target = [asked.fields.label, asked.fields.classes, asked.fields.number is not None]
    text = json.dumps([FORMAT, declared, identity, kinds, target], sort_keys=True, default=str)
    return sources / asked.fields.case / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def pieces(table: Table, sources: Path, asked: Asked, overlap: timedelta) -> Iterator[pl.DataFrame]:
    """The rows of a window (:func:`pipelines.cases.columns.pieces`): those that are new are taken in first.

    Tries again if the connection breaks. Raises what ``table`` raises, and DataError for times that are out of order.
    """
    folder = folder_of(sources, asked, table.identity)
    make_folder(folder)
    for left in reversed(range(TRIES)):
        try:
            days = _bring_up(table, folder, asked, overlap)
            undated = list(table.undated())
            break
        except Unavailable as error:
            if not left:
                raise
            log.warning("%s; what was read is kept, going on from there", error)
            time.sleep(PAUSE_SECONDS * (TRIES - left))
    yield from (piece.drop(MARK) for piece in undated)
    for day in days:
        frame = _frame(folder, day)
        if frame is not None:
            moment = pl.col("event_time")
            inside = (moment >= asked.window.start) & (moment < asked.window.end)
            yield from frame.filter(inside).drop(MARK).iter_slices(PIECE)


# --- taking in ----------------------------------------------------------------------------------


def _bring_up(table: Table, folder: Path, asked: Asked, overlap: timedelta) -> list[date]:
    """Take in what is new in the window's days; returns those that may have rows."""
    newest, first, last = table.bounds()
    if first is None or last is None:
        return []
    mark = _mark(newest, overlap, table.where)
    days = _days(max(asked.window.start, first), min(asked.window.end, last + timedelta(microseconds=1)))
    known = {day: kept for day in days if (kept := _kept(folder, day)) is not None}
    fresh: list[pl.DataFrame] = []
    for was_there, run in groupby(days, key=known.__contains__):
        run_days = list(run)
        since = min(known[day].mark for day in run_days) - overlap if was_there else None
        window = Window(start=_start(run_days[0]), end=_start(run_days[-1]) + DAY)
        within = replace(asked, window=window)
        for day, frames in _by_day(table.dated(within, since), run_days, table.where):
            rows = _take(folder, day, known.get(day), frames, mark, table.where)
            if was_there and frames:
                fresh.append(rows.select(pl.lit(day).alias("day"), pl.col("id").cast(pl.String), MARK))
    if fresh:
        _drop_moved(folder, days, pl.concat(fresh))
    return days


def _mark(newest: datetime | None, overlap: timedelta, where: str) -> datetime:
    """Up to where days that are read now are whole. A watermark that is ahead of the clock moves it no further."""
    now = wall_time()
    if newest is None:
        log.warning("%s: no row has a watermark: all of them are read each time", where)
        return NEVER
    if newest > now + overlap:
        log.warning(
            "%s: the newest watermark, %s, lies in the future (it is %s): rows from now on are read again each time "
            "until then, and nothing is lost; mend the clock, or the rows",
            where,
            newest.isoformat(),
            now.isoformat(timespec="seconds"),
        )
    return min(newest, now)


def _by_day(
    found: Iterator[pl.DataFrame], days: Sequence[date], where: str
) -> Iterator[tuple[date, list[pl.DataFrame]]]:
    """Every one of ``days`` with its rows, as soon as all of them have come."""
    waiting: dict[date, list[pl.DataFrame]] = {}
    left = list(reversed(days))
    for piece in found:
        if piece.schema["event_time"] != MOMENT:
            text = piece["event_time"].drop_nulls()[0]
            raise DataError(
                f"{where} has times that cannot be read among {text!r}: with a watermark rows are kept by their day; "
                "cast them or leave them out in a query, or remove source.watermark"
            )
        for (day,), rows in piece.group_by(pl.col("event_time").dt.date(), maintain_order=True):
            if not left or day < left[-1]:
                raise DataError(
                    f"{where} has times whose order as values is not that of their moments ({day} came late): cast "
                    "them to a time with a zone in a query, or remove source.watermark"
                )
            waiting.setdefault(day, []).append(rows)
        # Where times have no zone, an hour comes twice and a day begins at another moment: two days later it is over.
        newest = max(waiting, default=None)
        while left and newest is not None and left[-1] < newest - 2 * DAY:
            day = left.pop()
            yield day, waiting.pop(day, [])
    while left:
        day = left.pop()
        yield day, waiting.pop(day, [])


def _take(
    folder: Path,
    day: date,
    before: Kept | None,
    frames: Sequence[pl.DataFrame],
    mark: datetime,
    where: str,
) -> pl.DataFrame:
    """Keep a day with what was read of it; returns all of its rows."""
    if not frames:
        if before is None or before.mark != mark:
            _write(folder, day, replace(before, mark=mark) if before else Kept(mark))
        return pl.DataFrame()
    old = _frame(folder, day) if before else None
    try:
        rows = columns.together([*([] if old is None else [old]), *map(_readable_mark, frames)])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{where} holds other types than what was read of it before ({said(error)}): cast them in a query, or "
            f"remove {folder} to read all of it anew"
        ) from error
    rows = _newest(rows)
    _keep(folder, day, rows, mark)
    return rows


def _readable_mark(frame: pl.DataFrame) -> pl.DataFrame:
    """Watermarks that cannot be read as none: their rows are read each time."""
    if frame.schema[MARK] == pl.String:
        return frame.with_columns(pl.col(MARK).str.to_datetime(time_unit="us", time_zone="UTC", strict=False))
    return frame.with_columns(pl.col(MARK).cast(MOMENT))


def _newest(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each id what has the newest watermark, once; rows without id as they are."""
    age = pl.col(MARK).fill_null(pl.lit(datetime(1, 1, 1, tzinfo=UTC), MOMENT))
    kept = rows.unique().filter(pl.col("id").is_null() | (age == age.max().over("id")))
    return kept.sort("event_time", "id", MARK)


def _drop_moved(folder: Path, days: Sequence[date], fresh: pl.DataFrame) -> None:
    """Take rows out of the days where they lay before their event time was changed."""
    for day in days:
        kept, frame = _kept(folder, day), _frame(folder, day)
        if kept is None or frame is None:
            continue
        elsewhere = fresh.filter(pl.col("day") != day).select("id", newer=pl.col(MARK))
        held = frame.with_row_index("_row").select("_row", pl.col("id").cast(pl.String), MARK)
        moved = held.join(elsewhere, on="id").filter(pl.col("newer") > pl.col(MARK))["_row"]
        if moved.len():
            left = frame.with_row_index("_row").filter(~pl.col("_row").is_in(moved.implode())).drop("_row")
            _keep(folder, day, left, kept.mark)


# --- what is kept -------------------------------------------------------------------------------


def _days(start: datetime, end: datetime) -> list[date]:
    """The days from ``start`` to ``end``, each touched by more than its beginning."""
    found = []
    day = start.astimezone(UTC).date()
    while _start(day) < end:
        found.append(day)
        day += DAY
    return found


def _start(day: date) -> datetime:
    return datetime.combine(day, clock(0), UTC)


def _record(folder: Path, day: date) -> Path:
    return folder / f"{day}.json"


def _file(folder: Path, day: date, kept: Kept) -> Path:
    return folder / f"{day}-{kept.sha256[:16]}.parquet"


def _kept(folder: Path, day: date) -> Kept | None:
    """A day's record if the day is there whole."""
    kept = _read_record(folder, day)
    if kept is None or kept.mark == NEVER:
        return None
    if not kept.sha256:
        return kept
    path = _file(folder, day, kept)
    try:
        if file_sha256(path) == kept.sha256:
            return kept
    except OSError:
        pass
    log.warning("%s is gone or damaged: the day is read again", path)
    return None


def _read_record(folder: Path, day: date) -> Kept | None:
    try:
        found: Mapping[str, str] = json.loads(_record(folder, day).read_text())
        return Kept(datetime.fromisoformat(found["mark"]), int(found["rows"]), found["sha256"])
    except (OSError, ValueError, KeyError):
        return None


def _frame(folder: Path, day: date) -> pl.DataFrame | None:
    """A day's rows; another process may put newer ones in their place meanwhile."""
    for left in reversed(range(TRIES)):
        kept = _read_record(folder, day)
        if kept is None or not kept.sha256:
            return None
        try:
            return pl.read_parquet(_file(folder, day, kept), hive_partitioning=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            if not left:
                raise Unavailable(
                    f"{_file(folder, day, kept)} is gone or damaged ({said(error)}): try again, the day is read again"
                ) from error
    return None


def _keep(folder: Path, day: date, rows: pl.DataFrame, mark: datetime) -> None:
    before = _read_record(folder, day)
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd")
    kept = Kept(mark, rows.height, hashlib.sha256(buffer.getvalue()).hexdigest())
    write_atomic(_file(folder, day, kept), buffer.getvalue(), durable=False)
    failpoint("taken", str(day))
    _write(folder, day, kept)
    if before is not None and before.sha256 not in {"", kept.sha256}:
        _file(folder, day, before).unlink(missing_ok=True)


def _write(folder: Path, day: date, kept: Kept) -> None:
    # Not made durable: a day that a power cut takes away is read again.
    text = {"mark": kept.mark.isoformat(), "rows": kept.rows, "sha256": kept.sha256}
    write_atomic(_record(folder, day), json.dumps(text).encode(), durable=False)
