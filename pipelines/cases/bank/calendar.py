"""The raw bank file has no dates, only their order: this lays its rows on the calendar.

The file is ordered by date and gives month, weekday and the three-month Euribor, which is a daily
figure. Consecutive rows that agree in all three are one calling day. A month that goes backwards starts
a new year. Within a month the calling days are laid in order on dates with their weekday; earliest and
latest possible placement coincide in 24 of the 26 months. In October 2008 the latest placement holds
(its last Euribor, 4.760, precedes November's 4.733); in December 2008 the earliest, but for the last
day, which is the 22nd. The time of day is not known: rows are spread evenly over 09:00 to 18:00 in Lisbon.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from pipelines.errors import DataError

FIRST_YEAR = 2008
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LISBON = ZoneInfo("Europe/Lisbon")
_OPEN = time(9)
_SECONDS = 9 * 3600
_LATEST = {(2008, 10)}
_LAST_DAY = {(2008, 12): date(2008, 12, 22)}


def event_times(rows: pl.DataFrame) -> pl.Series:
    """Event time (microseconds, UTC) of each row of the file, in file order.

    ``rows`` needs ``month``, ``day_of_week`` and ``euribor3m`` and must start with the file's first row.
    Raises DataError if a month's calling days do not fit on the calendar.
    """
    marks = pl.struct("month", "day_of_week", "euribor3m")
    days = (
        rows.select(marks.rle_id().alias("day"), "month", "day_of_week")
        .group_by("day", maintain_order=True)
        .agg(pl.all().first(), pl.len())
    )
    times: list[datetime] = []
    for day, n in zip(_dates(days["month"].to_list(), days["day_of_week"].to_list()), days["len"], strict=True):
        opening = datetime.combine(day, _OPEN, _LISBON)
        # Half to even, in whole seconds: the middle of each of n equal parts of the working day.
        seconds = np.round((np.arange(n) + 0.5) * _SECONDS / n)
        times += [opening + timedelta(seconds=float(second)) for second in seconds]
    return pl.Series("event_time", times, pl.Datetime("us", "UTC"))


def _dates(months: list[str], weekdays: list[str]) -> list[date]:
    year = FIRST_YEAR
    previous = 0
    by_month: dict[tuple[int, int], list[int]] = {}
    for name, weekday in zip(months, weekdays, strict=True):
        month = MONTHS.index(name) + 1
        year += month < previous
        previous = month
        by_month.setdefault((year, month), []).append(WEEKDAYS.index(weekday))
    return [day for (y, m), wanted in by_month.items() for day in _lay(y, m, wanted)]


def _lay(year: int, month: int, weekdays: list[int]) -> list[date]:
    lays_latest = (year, month) in _LATEST
    days = [date(year, month, 1) + timedelta(days=n) for n in range(31)]
    calendar = [day for day in days if day.month == month]
    wanted = list(weekdays)
    if lays_latest:
        # From the month's end backwards; turned round below.
        calendar.reverse()
        wanted.reverse()
    laid: list[date] = []
    remaining = iter(calendar)
    for weekday in wanted:
        day = next((day for day in remaining if day.weekday() == weekday), None)
        if day is None:
            raise DataError(
                f"the calling days of {year}-{month:02d} do not fit on the calendar: "
                "the file is not the ordered original"
            )
        laid.append(day)
    if lays_latest:
        laid.reverse()
    if (year, month) in _LAST_DAY:
        laid[-1] = _LAST_DAY[year, month]
    return laid
