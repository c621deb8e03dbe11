"""Which window a drift run looks at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from pipelines.contracts import Window


def drift_window(as_of: datetime, kind: Literal["day", "week", "month", "quarter"]) -> Window:
    """The newest whole window that has ended by ``as_of``: one or seven UTC days, or a calendar month or quarter.

    >>> drift_window(datetime(2009, 5, 1, 2, tzinfo=UTC), "month").start.isoformat()
    '2009-04-01T00:00:00+00:00'
    >>> drift_window(datetime(2015, 2, 11, tzinfo=UTC), "quarter").start.isoformat()
    '2014-10-01T00:00:00+00:00'
    """
    midnight = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)
    if kind == "month":
        end = midnight.replace(day=1)
        return Window(start=(end - timedelta(days=1)).replace(day=1), end=end)
    if kind == "quarter":
        end = midnight.replace(month=midnight.month - (midnight.month - 1) % 3, day=1)
        last = end - timedelta(days=1)
        return Window(start=last.replace(month=last.month - 2, day=1), end=end)
    return Window(start=midnight - timedelta(days={"day": 1, "week": 7}[kind]), end=midnight)


def last_windows(window: Window, kind: Literal["day", "week", "month", "quarter"], count: int) -> list[Window]:
    """The ``count`` windows up to and with ``window``, oldest first.

    >>> month = drift_window(datetime(2009, 3, 1, tzinfo=UTC), "month")
    >>> [one.start.month for one in last_windows(month, "month", 3)]
    [12, 1, 2]
    """
    found = [window]
    while len(found) < count:
        found.append(drift_window(found[-1].start, kind))
    return found[::-1]
