"""Windows, delays and prices from how many rows came and when: the parameters that hang on volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import polars as pl

WANTED = 10_000
"""Rows of a training window."""
MOST = 200_000
"""Rows of a window are thinned out to so many: more of them add little and take long."""
DAY = 86_400.0
Window = Literal["day", "week", "month", "quarter"]
DAYS: dict[Window, int] = {"day": 1, "week": 7, "month": 30, "quarter": 91}
CRON: dict[Window, str] = {"day": "0 2 * * *", "week": "0 2 * * 1", "month": "0 2 1 * *", "quarter": "0 2 1 1,4,7,10 *"}
ENOUGH = 200
"""Rows of a drift window below which it is rather a longer one."""


@dataclass(frozen=True)
class Extent:
    """How many rows a table has, and its first and last event."""

    rows: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Volume:
    """How many rows came and when, of which ``looked_at`` were seen.

    ``delay``: days until a label is known, ``guessed`` if no row shows it.
    """

    rows: int
    labelled: int
    first: datetime
    last: datetime
    delay: int
    guessed: bool
    looked_at: int

    @property
    def days(self) -> float:
        """How long the history is, at least a day."""
        return max(1.0, (self.last - self.first).total_seconds() / DAY)

    @property
    def per_day(self) -> float:
        """Rows of a day."""
        return self.rows / self.days

    @property
    def window_days(self) -> int:
        """So many days that a training window has some thousand labelled rows, and never more than the history."""
        wanted = WANTED / max(1e-9, self.labelled / self.days)
        return math.ceil(min(max(wanted, 7.0), self.days)) + self.delay + 1

    @property
    def max_rows(self) -> int | None:
        """How many rows of a window are used at most, if there are far more."""
        return MOST if self.per_day * self.window_days > 1.5 * MOST else None

    @property
    def drift(self) -> Window:
        """The shortest drift window with enough rows."""
        return next((window for window, days in DAYS.items() if self.per_day * days >= ENOUGH), "quarter")

    @property
    def drift_rows(self) -> int:
        """Rows below which a drift window is not judged: half of what is usual, 200 at most."""
        return max(20, min(200, int(self.per_day * DAYS[self.drift] / 2)))

    @property
    def holdout(self) -> int:
        """Rows below which nothing is decided: 200, and of a small table what its fifth can have."""
        return max(20, min(200, math.floor(self.labelled * 0.2 * 0.8)))


def measure(times: pl.Series, labels: pl.Series, extent: Extent, delays: pl.Series | None = None) -> Volume:
    """What the rows looked at, in order of time, say of volume and of the label's delay.

    ``delays`` are the times from an event to its label, if they are known: 95 of 100 labels come within the delay.
    Else, where the newest rows have no label yet and older ones have, that is how long it takes.
    """
    last = times[-1]
    known = labels.is_not_null()
    rows, labelled = times.len(), int(known.sum())
    delay, guessed = 1, True
    if delays is not None and (usual := delays.drop_nulls().dt.total_seconds().quantile(0.95)) is not None:
        delay, guessed = max(1, math.ceil(usual / DAY)), False
    elif labelled < rows:
        newest = times.filter(known)[-1]
        waiting = times.filter(times > newest).len()
        if waiting >= max(10, 0.001 * rows):
            delay, guessed = max(1, math.ceil((last - newest) / timedelta(days=1))), False
    labelled = round(labelled * max(1.0, extent.rows / rows))
    return Volume(extent.rows, labelled, extent.first, extent.last, delay, guessed, rows)
