"""Which window a drift run looks at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from pipelines.contracts import Window


def drift_window(as_of: datetime, kind: Literal["day", "week", "month"]) -> Window:
    """The newest whole window that has ended by ``as_of``: one or seven UTC days, or a calendar month.

    >>> drift_window(datetime(2009, 5, 1, 2, tzinfo=UTC), "month").start.isoformat()
    '2009-04-01T00:00:00+00:00'
    """
    midnight = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)
    if kind == "month":
        end = midnight.replace(day=1)
        return Window(start=(end - timedelta(days=1)).replace(day=1), end=end)
    return Window(start=midnight - timedelta(days=1 if kind == "day" else 7), end=midnight)
