"""The drawings of a rollout's page as numbers: the weight, the guard's evidence, and the experiment over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from pipelines.amounts import share
from pipelines.reports.daily.axes import LEFT, RIGHT, WIDTH, Tick, rounded
from pipelines.reports.staged.view import Compared, Estimate, Event, Guarded, View
from pipelines.reports.staged.words import moment

TOP, BOTTOM = 16, 28
LOW, TALL = 150, 280
"""Heights of the pictures."""
CLOSE = 40
"""Labels of marks that are closer than this would lie on each other."""
MOST_E = 1e6
"""Evidence beyond so much is drawn there."""
_STEPS = [timedelta(minutes=n) for n in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720)]
_STEPS += [timedelta(days=n) for n in (1, 2, 7, 14, 30, 90, 365)]
_TICKS = 7


@dataclass(frozen=True)
class Plot:
    """Where times and values lie in a picture."""

    start: datetime
    end: datetime
    low: float
    high: float
    height: int = LOW

    left, right, width = LEFT, WIDTH - RIGHT, WIDTH

    @property
    def top(self) -> int:
        """The upper end of the drawn field."""
        return TOP

    @property
    def bottom(self) -> int:
        """The lower end of the drawn field."""
        return self.height - BOTTOM

    def x(self, when: datetime) -> float:
        """A time, not beyond the ends."""
        part = min(1.0, max(0.0, (when - self.start) / max(self.end - self.start, timedelta(microseconds=1))))
        return round(self.left + (self.right - self.left) * part, 1)

    def y(self, value: float) -> float:
        """A value, not beyond the ends."""
        part = (self.high - min(max(value, self.low), self.high)) / (self.high - self.low)
        return round(self.top + (self.bottom - self.top) * part, 1)

    @property
    def times(self) -> tuple[Tick, ...]:
        """About seven round moments."""
        span = self.end - self.start
        step = next((one for one in _STEPS if span / one <= _TICKS), _STEPS[-1])
        first = math.ceil(self.start.timestamp() / step.total_seconds())
        last = math.floor(self.end.timestamp() / step.total_seconds())
        moments = [datetime.fromtimestamp(at * step.total_seconds(), UTC) for at in range(first, last + 1)]
        return tuple(
            Tick(self.x(at), f"{at.day} {at:%b}" if step >= timedelta(days=1) else _hour(at)) for at in moments
        )


def _hour(at: datetime) -> str:
    return f"{at:%H:%M}" if at.hour or at.minute else f"{at.day} {at:%b}"


@dataclass(frozen=True)
class Mark:
    """A row of the ledger in a picture."""

    x: float
    y: float
    label: str
    told: str
    colour: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Picture:
    """A drawing: its field, the ticks of values, an area or a band, a line, marks, and the line of a limit."""

    plot: Plot
    values: tuple[Tick, ...]
    area: str = ""
    line: str = ""
    points: tuple[Mark, ...] = ()
    limit: float | None = None
    limit_told: str = ""


COLOURS = {
    "abort": "#b3261e",
    "rollback": "#b3261e",
    "promote": "#1a7f46",
    "release": "#1a7f46",
    "settle": "#1a7f46",
    "hold": "#9a6200",
}


def weights(view: View) -> Picture:
    """The share of keys that met the challenger, over time, and the rows that changed it."""
    plot = Plot(view.opened, view.until, 0.0, 1.0)
    places = [(plot.x(one.at), plot.y(one.share)) for one in view.events]
    corners = [places[0]]
    for (_, before), (x, y) in pairwise(places):
        corners += [(x, before), (x, y)]
    corners.append((float(plot.right) if view.over is None else corners[-1][0], corners[-1][1]))
    area = [(corners[0][0], plot.bottom), *corners, (corners[-1][0], plot.bottom)]
    # A label has room if the next mark is some way off.
    room = [x - before >= CLOSE for (before, _), (x, _) in pairwise(places)] + [True]
    marks = tuple(
        Mark(
            x,
            y,
            _label(one) if free else "",
            f"{moment(one.at)}: {one.action}, {share(one.share)}, by {one.who}: {one.why}",
            COLOURS.get(one.action, "#1a5fb4"),
            _anchor(plot, x),
        )
        for (x, y), one, free in zip(places, view.events, room, strict=True)
    )
    ticks = tuple(Tick(plot.y(value), f"{value:.0%}") for value in (0.0, 0.5, 1.0))
    return Picture(plot, ticks, _path(area), _path(corners), marks)


def evidence(view: View, guarded: Guarded) -> Picture | None:
    """The guard's sum of e-values after each window, on a logarithmic axis; None without a window."""
    if not guarded.course:
        return None
    most = max(guarded.limit * 3, min(max(e for _, e in guarded.course), MOST_E) * 1.3)
    plot = Plot(view.opened, max(view.until, guarded.course[-1][0]), math.log10(0.1), math.log10(most))
    places = [(plot.x(at), plot.y(math.log10(min(max(e, 0.1), MOST_E)))) for at, e in guarded.course]
    powers = range(0, math.floor(math.log10(most)) + 1, 1 if most < 1e4 else 2)
    points = tuple(
        Mark(x, y, "", f"until {moment(at)}: {_short(e)}", "#b3261e" if e >= guarded.limit else "#1a5fb4")
        for (x, y), (at, e) in zip(places, guarded.course, strict=True)
    )
    return Picture(
        plot,
        tuple(Tick(plot.y(power), f"{10**power:,}" if power < 5 else f"1e{power}") for power in powers),
        line=_path(places),
        points=points if len(points) <= 80 else points[-1:],
        limit=plot.y(math.log10(guarded.limit)),
        limit_told=f"taken back at {guarded.limit:g}",
    )


def estimates(view: View, compared: Compared) -> Picture | None:
    """The estimate with its always-valid interval over time; None while there is none."""
    known = [one for one in compared.course if one.low is not None or one.high is not None]
    if not known:
        return None
    shown = [compared.null, *(one.value for one in known)]
    last = known[-1]
    shown += [end for end in (last.low, last.high) if end is not None]
    room = max(0.6 * (max(shown) - min(shown)), 1e-6 + 0.02 * abs(last.value))
    low, high = min(shown) - room, max(shown) + room
    if compared.scale == "odds ratio":
        low = max(low, 0.0)
    plot = Plot(view.opened, view.until, low, high, TALL)
    upper = [(plot.x(one.at), plot.y(high if one.high is None else one.high)) for one in known]
    lower = [(plot.x(one.at), plot.y(low if one.low is None else one.low)) for one in known]
    points = tuple(
        Mark(plot.x(one.at), plot.y(one.value), "", f"{moment(one.at)}: {_end(one.value)} ({_ends(one)})", "#1a5fb4")
        for one in known
    )
    return Picture(
        plot,
        tuple(Tick(plot.y(value), label) for value, label in rounded(low, high)),
        area=_path([*upper, *reversed(lower)]),
        line=_path([(one.x, one.y) for one in points]),
        points=points,
        limit=plot.y(compared.null),
        limit_told="no difference",
    )


def _label(one: Event) -> str:
    if one.stage == "shadow":
        return "shadow"
    return share(one.share) if one.action in {"open", "advance", "promote", "release"} else one.action


def _ends(one: Estimate) -> str:
    return f"{_end(one.low)} to {_end(one.high)}"


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _anchor(plot: Plot, x: float) -> str:
    if x < plot.left + 30:
        return "start"
    return "end" if x > plot.right - 30 else "middle"


def _short(e: float) -> str:
    return f"{e:,.1f}" if e < 100 else f"{e:,.0f}"


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
