"""The axes of the daily page's metric: where times and values lie in its picture, and the ticks beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from pipelines.contracts import Interval, Window
from pipelines.drift_report import WindowFigures

WIDTH = 900
HEIGHT = 300
LEFT = 52
RIGHT = 14
TOP = 34
BOTTOM = 30


@dataclass(frozen=True)
class Axes:
    """Where times and values of the metric lie in its picture, in its units."""

    start: datetime
    end: datetime
    low: float
    high: float

    def x(self, when: datetime) -> float:
        """A time, not beyond the ends."""
        part = min(1.0, max(0.0, (when - self.start) / (self.end - self.start)))
        return round(LEFT + (WIDTH - LEFT - RIGHT) * part, 1)

    def middle(self, of: Window | WindowFigures) -> float:
        """The middle of a window."""
        return (self.x(of.start) + self.x(of.end)) / 2

    def y(self, value: float) -> float:
        """A value, not beyond the ends."""
        part = (self.high - min(max(value, self.low), self.high)) / (self.high - self.low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * part, 1)


@dataclass(frozen=True)
class Frame:
    """The ends of the drawn field."""

    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


FRAME = Frame()


@dataclass(frozen=True)
class Tick:
    """A value or a date beside an axis, ``at`` its place."""

    at: float
    label: str


def span(losses: Sequence[Interval]) -> tuple[float, float]:
    """The least and the largest value of an axis on which these losses are to be seen."""
    values = [loss.value for loss in losses]
    # Intervals of a few rows would flatten what is to be seen: half of them fit.
    half = 1.2 * median(loss.high - loss.value for loss in losses)
    spread = max(max(values) - min(values), half, 0.1 * max(values), 1e-3)
    low = max(0.0, min(values) - spread, min(loss.low for loss in losses))
    high = min(max(values) + spread, max(loss.high for loss in losses)) + 0.05 * spread
    if low:
        low -= 0.05 * spread
    return low, high


def span_of_gains(gains: Sequence[Interval], *levels: float) -> tuple[float, float]:
    """The ends of an axis on which these gains, nothing and the ``levels`` are to be seen."""
    shown = [0.0, *levels, *(one.value for one in gains)]
    # Intervals of a few rows would flatten what is to be seen: half of them fit.
    half = max(1.2 * median(one.high - one.value for one in gains), 0.1 * (max(shown) - min(shown)), 1e-3)
    return min(shown) - half, max(shown) + half


def values(axes: Axes) -> tuple[Tick, ...]:
    """About four round values beside the picture."""
    return tuple(Tick(axes.y(value), label) for value, label in rounded(axes.low, axes.high))


def rounded(low: float, high: float) -> list[tuple[float, str]]:
    """About four round values between two others, with the digits that they need.

    >>> rounded(-0.02, 0.11)
    [(0.0, '0.00'), (0.05, '0.05'), (0.1, '0.10')]
    """
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    digits = max(0, -math.floor(math.log10(step)))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(number * step, f"{number * step:.{digits}f}") for number in numbers]


def dates(windows: Sequence[Window | WindowFigures], axes: Axes, kind: str | None) -> tuple[Tick, ...]:
    """At most eight windows by name, in their middles; those of no calendar (None) are named by their last day."""
    by_end = {one.end: one for one in windows}
    ends = sorted(by_end)
    every = math.ceil(len(ends) / 8)
    shown = (by_end[end] for end in ends[::-1][::every][::-1])
    return tuple(Tick(axes.middle(one), _short(one.end - timedelta(microseconds=1), kind)) for one in shown)


def _short(last: datetime, kind: str | None) -> str:
    """A window's short name; an apostrophe tells a year from a day."""
    if kind is None:
        return f"{last.day} {last:%b '%y}"
    if kind == "quarter":
        return f"Q{(last.month + 2) // 3} '{last:%y}"
    if kind == "month":
        return f"{last:%b '%y}"
    return f"{last.day} {last:%b}"
