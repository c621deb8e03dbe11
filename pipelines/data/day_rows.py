"""The rows of single days of the prediction log, in memory that does not hang on how many there are.

Days that are small are read together, as frames. Of a large day only the rows whose id is logged more than once are
held, so that each of them counts once; all others are left in their files, to be streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import polars as pl
from more_itertools import constrained_batches

from pipelines.data import log, repeats
from pipelines.settings import Settings

TOGETHER = 32 << 20
"""Bytes of files that are read at once, those of neighbours counted for every day: some hundred thousand rows."""
Each = Callable[[pl.LazyFrame], pl.LazyFrame]
Streamed = tuple[list[Path], pl.Expr | None]
"""Files, and which of their rows count (None: all of them)."""


@dataclass(frozen=True)
class DayRows:
    """A day's rows: those that are ``held`` (None: there are none), and by hour those that are left in files."""

    day: date
    held: pl.DataFrame | None
    streamed: dict[int, Streamed] = field(default_factory=dict)


def read(settings: Settings, case: str, days: Sequence[date], each: Each) -> Iterator[DayRows]:
    """The rows of each of the days, ascending; ``each`` changes what a file holds (:func:`log.read_days`)."""
    for together, small in _stretches(settings, case, days):
        if not small:
            yield _large(settings, case, together[0], each)
            continue
        for day, rows in log.read_days(settings, case, together, each):
            yield DayRows(day, rows)


def _stretches(settings: Settings, case: str, days: Sequence[date]) -> Iterator[tuple[Sequence[date], bool]]:
    """The days, as many together as have small files, and whether those are small: of a single day they may not be."""
    sizes = {day: sum(file.stat().st_size for file in log.near(settings, case, log.window_of(day))) for day in days}
    for together in constrained_batches(days, TOGETHER, get_len=sizes.__getitem__, strict=False):
        yield together, sizes[together[0]] <= TOGETHER


def _large(settings: Settings, case: str, day: date, each: Each) -> DayRows:
    hours, spread = log.partitions(settings, case, day)
    # Rows in files of several days are held too: they are few.
    twice = repeats.repeated(log.near(settings, case, log.window_of(day)), held=spread)
    if not twice.size:
        return DayRows(day, None, {hour: (files, None) for hour, files in hours.items()})
    again = repeats.hashed().is_in(pl.Series(twice).implode())
    [(_, held)] = log.read_days(settings, case, [day], lambda scan: each(scan.filter(again)))
    streamed = {hour: (files, ~again if repeats.holds(files, twice) else None) for hour, files in hours.items()}
    return DayRows(day, held, streamed)
