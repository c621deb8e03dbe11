"""The clock of a replay: history cut into ticks, after each of which a policy may act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from pipelines.contracts import Window
from pipelines.drift.profile.windows import drift_window
from pipelines.errors import ConfigError
from pipelines.params import DriftParams, ReplayParams


@dataclass(frozen=True)
class Tick:
    """One stretch of served rows. ``judged`` says that a drift window ends with it."""

    window: Window
    label: str
    judged: bool

    def ends(self, months: int) -> bool:
        """Whether a calendar stretch of so many ``months`` ends with or within it: 1, 3 a quarter, 6 half a year."""
        first, after = self.window.start, self.window.end
        return (first.year * 12 + first.month - 1) // months != (after.year * 12 + after.month - 1) // months


def unit(params: DriftParams) -> str:
    """A tick is a calendar month, or the case's drift window where that is shorter."""
    if params.window in {"day", "week"}:
        return params.window
    return "month"


def cut(since: date, until: date, params: DriftParams) -> tuple[Tick, ...]:
    """Whole ticks from ``since`` up to ``until`` at most.

    Raises ConfigError if there is none, or if months do not start with ``since``.
    """
    kind = unit(params)
    if kind == "month" and since.day != 1:
        raise ConfigError(
            f"a replay by months starts with a month, not on {since}: give --since {since.replace(day=1)}"
        )
    ticks = tuple(_cut(since, until, kind, params))
    if not ticks:
        raise ConfigError(f"no whole {kind} lies between {since} and {until}: give a later --until, or more --months")
    return ticks


def _cut(since: date, until: date, kind: str, params: DriftParams) -> Iterator[Tick]:
    day = since
    while (after := _next(day, kind)) <= until:
        window = Window(start=midnight(day), end=midnight(after))
        judged = drift_window(window.end, params.window).end == window.end
        yield Tick(window, f"{day:%Y-%m}" if kind == "month" else day.isoformat(), judged)
        day = after


def _next(day: date, kind: str) -> date:
    if kind == "month":
        return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return day + timedelta(days={"day": 1, "week": 7}[kind])


def stretch(
    case: str, params: ReplayParams | None, since: date | None, until: date | None, months: int | None
) -> tuple[date, date]:
    """What to replay: the options, else the case's ``replay`` parameters.

    ``months`` counts calendar months from the start. Raises ConfigError if neither says it.
    """
    start = since or (params.first_as_of if params else None)
    if start is None:
        raise ConfigError(f"{case}: params.yaml has no replay block: give --since, and --until or --months")
    if months is not None:
        if until is not None:
            raise ConfigError(f"--months {months} and --until {until} say the same thing twice: give one")
        whole = start.year * 12 + start.month - 1 + months
        return start, date(whole // 12, whole % 12 + 1, 1)
    end = until or (params.until if params else None)
    if end is None:
        raise ConfigError(f"{case}: params.yaml has no replay block: give --until or --months")
    return start, end


def midnight(day: date) -> datetime:
    """The first moment of a UTC day."""
    return datetime.combine(day, time(), UTC)
