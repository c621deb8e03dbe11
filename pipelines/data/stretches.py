"""Stretches of whole days, by which a window is read in several tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from datetime import UTC, date, datetime, time, timedelta

from pipelines.contracts import Window
from pipelines.errors import ConfigError

MOST = 1000
"""Stretches of one window at most, as Airflow maps a task over 1,024 values by default; each then has more days."""
_DAY = timedelta(days=1)
_BETWEEN = "--"
"""Between the first and the last day in a name, as in ISO 8601 where a name may have no slash."""


def cut(window: Window, days: int) -> list[Window]:
    """A window in stretches of so many days each, ascending; the newest is whole, the oldest may be shorter."""
    total = math.ceil((window.end - window.start) / _DAY)
    length = timedelta(days=max(days, math.ceil(total / MOST)))
    found = []
    last = _midnight(_last_day(window) + _DAY)
    while last > window.start:
        first = max(window.start, last - length)
        found.append(Window(start=first, end=min(window.end, last)))
        last = first
    return found[::-1]


def name(stretch: Window) -> str:
    """The first and the last day: ``2020-05-01--2020-05-07``.

    >>> name(Window(start=datetime(2020, 5, 1, tzinfo=UTC), end=datetime(2020, 5, 3, tzinfo=UTC)))
    '2020-05-01--2020-05-02'
    """
    return f"{stretch.start.date()}{_BETWEEN}{_last_day(stretch)}"


def named(text: str, end: datetime) -> Window:
    """The stretch of a name; one that ends on the day of ``end`` ends there. Raises ConfigError if it names none."""
    try:
        first, last = map(date.fromisoformat, text.split(_BETWEEN))
        return Window(start=_midnight(first), end=min(_midnight(last + _DAY), end))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no stretch of days: write it as 2020-05-01--2020-05-07") from error


def spans(window: Window, made: Collection[Window]) -> Iterator[Window]:
    """The window in spans, the newest first: those that are ``made`` and lie in it, and what is left beside them."""
    end = window.end
    for one in sorted(made, key=lambda one: one.end, reverse=True):
        if one.start < window.start or one.end > end:
            continue
        if one.end < end:
            yield Window(start=one.end, end=end)
        yield one
        end = one.start
    if end > window.start:
        yield Window(start=window.start, end=end)


def _last_day(window: Window) -> date:
    return (window.end - timedelta(microseconds=1)).date()


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(0), UTC)
