"""The lines of the prediction log as they were answered, segment by segment: every one, whichever row it repeats.

A segment is read where it lies: it is what was answered, and its seal says so; its few files are read faster than the
many hours that it was compacted to. Of one that is not on this machine the partitions are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import polars as pl

from pipelines.contracts import Window
from pipelines.data import compaction, log, records
from pipelines.data.records import SPREAD, Done
from pipelines.segments import CLOSED
from pipelines.settings import Settings

AT_ONCE = 200
"""Partitions that are read together."""


def read(settings: Settings, case: str, window: Window) -> Iterator[pl.DataFrame]:
    """The lines with event time in ``window``, in frames of one segment, or of some partitions.

    The columns are those of a partition: ``id, request_id, event_time, received_at, version, score, prediction``, the
    fields as they were logged, and some frames ``scores`` and ``traceparent``. What is compacted is read: catch up
    before (:func:`log.catch_up`). The partitions of the window are checked, too. Raises IntegrityError, naming the
    file, for a segment or a partition that is not what was written.
    """
    folder = settings.prediction_log / case / "predictions"
    known = compaction.known(settings, case, "predictions")
    first, last = _days(window)
    days = [day for day in known.days if first <= day <= last]
    files = records.checked(compaction.folder_of(settings, case, "predictions"), (), days)
    inside = (pl.col("event_time") >= window.start) & (pl.col("event_time") < window.end)
    read_segment = compaction.reader(settings, case)
    elsewhere = set[str]()
    for name, done in sorted(known.segments.items()):
        if not _reaches(done, window):
            continue
        path = folder / f"{name}{CLOSED}"
        if path.exists():
            yield read_segment(path).filter(inside)
        else:
            elsewhere.add(name)
    left = [file for file in files if file.stem in elsewhere]
    for start in range(0, len(left), AT_ONCE):
        yield log.lines(settings, case, "predictions", left[start : start + AT_ONCE], lambda scan: scan.filter(inside))


def _days(window: Window) -> tuple[str, str]:
    """The first and the last day of a window."""
    return str(window.start.date()), str((window.end - timedelta(microseconds=1)).date())


def _reaches(done: Done, window: Window) -> bool:
    """Whether a segment has rows of the window's days."""
    first, last = _days(window)
    days = [part.place.partition("/")[0].removeprefix("date=") for part in done.parts if part.place != SPREAD]
    return any(first <= day <= last for day in (*days, *done.spread))
