"""A Parquet file in parts, for a reader that holds one of them at a time.

polars reads and decodes a whole file ahead of who takes its rows more slowly, so each part is a scan of its own. What
the statistics of row groups tell is looked at here, as polars asks them of a whole file alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import Window

AT_ONCE = 1 << 18
"""Rows of a part; polars passes over what comes before them in their row group without decoding it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS = {"milliseconds": 1e3, "microseconds": 1.0, "nanoseconds": 1e-3}
_DAY = 86_400e6
"""A day in microseconds: a time in no zone is at most that far from UTC."""


def parts(path: Path, event_time: str, window: Window) -> Iterator[pl.LazyFrame]:
    """Scans of rows that follow each other, of ``AT_ONCE`` rows at most, and at least one.

    Row groups whose statistics say that no ``event_time`` lies in the window, or is missing, are left out. A file that
    pyarrow cannot read is one scan, for polars to say what is wrong with it.
    """
    scan = pl.scan_parquet(path, hive_partitioning=False)
    try:
        groups = _wanted(pq.read_metadata(path), event_time, window)
    except (pa.ArrowException, OSError):
        yield scan
        return
    begin = end = 0
    for first, size in groups:
        if first != end:
            yield from _cut(scan, begin, end)
            begin = first
        end = first + size
    yield from _cut(scan, begin, end)


def _cut(scan: pl.LazyFrame, begin: int, end: int) -> Iterator[pl.LazyFrame]:
    for start in range(begin, max(end, begin + 1), AT_ONCE):
        yield scan.slice(start, min(AT_ONCE, end - start))


def _wanted(file: pq.FileMetaData, event_time: str, window: Window) -> list[tuple[int, int]]:
    """The first row and the number of rows of each row group that may hold rows of the window."""
    names = [file.schema.column(place).path for place in range(file.num_columns)]
    place = names.index(event_time) if event_time in names else None
    found = []
    first = 0
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        if place is None or _may_hold(file.schema.column(place), group.column(place).statistics, window):
            found.append((first, group.num_rows))
        first += group.num_rows
    return found


def _may_hold(column: pq.ColumnSchema, known: pq.Statistics | None, window: Window) -> bool:
    """Whether a row group may hold rows of the window, or rows without a time."""
    kind = json.loads(column.logical_type.to_json())
    if kind.get("Type") != "Timestamp" or known is None or not known.has_min_max or known.null_count != 0:
        return True
    unit = _MICROSECONDS[kind["timeUnit"]]
    start, end = ((moment - _EPOCH).total_seconds() * 1e6 for moment in (window.start, window.end))
    return bool(known.max_raw * unit >= start - _DAY and known.min_raw * unit <= end + _DAY)
