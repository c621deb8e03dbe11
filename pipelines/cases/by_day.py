"""Rows that come in any order, given back as whole days in memory that hangs neither on how many rows nor days are.

What is few stays in memory. Else every so many rows are sorted by day and laid down in a scratch file, a run of an
external sort; then a day's rows are a slice of each run. A source is read once, however its rows are ordered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path

import polars as pl
from more_itertools import constrained_batches

from pipelines.cases.columns import MOMENT, together
from pipelines.moments import parse_moment

AT_ONCE = 32 << 20
"""Bytes of rows that are held at once, if no single day has more."""
_BATCH = 8192
"""Rows of a scratch file that are read for one of them."""
_DAY = "_day"


@dataclass(frozen=True)
class _Run:
    """A scratch file of rows sorted by day, those without one first.

    ``days`` says where each begins and how many rows it has, ``width`` how many bytes a row takes.
    """

    path: Path
    days: Mapping[date | None, tuple[int, int]]
    width: float


def by_day(
    pieces: Iterable[pl.DataFrame], scratch: Callable[[], AbstractContextManager[Path]]
) -> Iterator[pl.DataFrame]:
    """Frames of whole days of ``event_time``, the newest first, and rows without a readable time behind them, alone.

    All days in one frame if they are few. ``scratch`` opens a folder that is used and removed if they are not. Each
    row comes once. Raises what ``pieces`` raises, before the first frame.
    """
    heaps = _heaps(pieces)
    first = next(heaps)
    second = next(heaps, None)
    if second is None:
        undated = _days(first["event_time"]).is_null()
        if undated.any() and not undated.all():
            yield first.filter(~undated)
            yield first.filter(undated)
        else:
            yield first
        return
    heaps = chain([first, second], heaps)
    del first, second  # each heap is let go before the next but one is read
    with scratch() as folder:
        runs = [_laid_down(heap, folder / f"{number}.arrow") for number, heap in enumerate(heaps)]
        for days in _stretches(runs):
            yield together(_slice(run, days) for run in runs if run.days.keys() & days)


def _heaps(pieces: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Pieces put together to frames of about ``AT_ONCE`` bytes."""
    held: list[pl.DataFrame] = []
    size = 0.0
    for piece in pieces:
        held.append(piece)
        size += piece.estimated_size()
        if size > AT_ONCE:
            yield together(held)
            held, size = [], 0.0
    if held:
        yield together(held)


def _laid_down(rows: pl.DataFrame, path: Path) -> _Run:
    rows = rows.with_columns(_days(rows["event_time"])).sort(_DAY, nulls_last=False, maintain_order=True)
    counts = rows.group_by(_DAY, maintain_order=True).len()
    begins = counts["len"].cum_sum() - counts["len"]
    rows = rows.drop(_DAY)
    rows.write_ipc(path, compression="uncompressed", record_batch_size=_BATCH)
    places = dict(zip(counts[_DAY], zip(begins, counts["len"], strict=True), strict=True))
    return _Run(path, places, rows.estimated_size() / rows.height)


def _days(times: pl.Series) -> pl.Series:
    """The day of each time, as rows get it: where some could not be read, all are texts."""
    if times.dtype == pl.String:
        times = pl.Series("event_time", [_moment(text) for text in times], MOMENT)
    elif times.dtype != MOMENT:
        times = pl.Series("event_time", [None], MOMENT).new_from_index(0, times.len())
    return times.dt.date().alias(_DAY)


def _moment(text: str | None) -> object:
    try:
        return parse_moment(text or "")
    except ValueError:
        return None


def _stretches(runs: list[_Run]) -> Iterator[set[date | None]]:
    """The days that are read together, the newest first; what has none comes last and alone."""
    sizes: Counter[date | None] = Counter()
    for run in runs:
        for day, (_, rows) in run.days.items():
            sizes[day] += round(rows * run.width)
    newest_first = sorted((day for day in sizes if day is not None), reverse=True)
    yield from map(set, constrained_batches(newest_first, AT_ONCE, get_len=sizes.__getitem__, strict=False))
    if None in sizes:
        yield {None}


def _slice(run: _Run, days: set[date | None]) -> pl.DataFrame:
    """The rows of days that follow each other."""
    places = [run.days[day] for day in run.days.keys() & days]
    begin = min(first for first, _ in places)
    return pl.scan_ipc(run.path).slice(begin, sum(rows for _, rows in places)).collect()
