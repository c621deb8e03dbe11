"""The daily page's drawing of the metric as numbers: one time line of windows, versions, verdicts and estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from pipelines.moments import parse_utc as moment
from pipelines.reports.daily_words import View, rolling
from pipelines.reports.figures import count, day, window

WIDTH = 900
HEIGHT = 300
LEFT = 52
RIGHT = 14
TOP = 34
BOTTOM = 30
MARKS = {"reject": ("rejected", "cross"), "inconclusive": ("inconclusive", "ring")}


@dataclass(frozen=True)
class Axes:
    """Where times and values of the metric lie in its picture, in its units."""

    start: datetime
    end: datetime
    low: float
    high: float

    def x(self, when: str) -> float:
        """A time, not beyond the ends."""
        passed = (moment(when) - self.start).total_seconds()
        part: float = min(1.0, max(0.0, passed / (self.end - self.start).total_seconds()))
        return round(LEFT + (WIDTH - LEFT - RIGHT) * part, 1)

    def middle(self, of: Mapping[str, Any]) -> float:
        """The middle of a window."""
        return (self.x(of["start"]) + self.x(of["end"])) / 2

    def y(self, value: float) -> float:
        """A value, not beyond the ends."""
        part: float = (self.high - min(max(value, self.low), self.high)) / (self.high - self.low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * part, 1)


def metric(view: View) -> dict[str, Any] | None:
    """The log-loss of every window with its interval, releases and verdicts on one time line.

    None without any labelled window.
    """
    found = rolling(view)
    known = [one for one in found if one.get("log_loss") is not None]
    if not known:
        return None
    low, high = _range(known)
    start = moment(min(one["start"] for one in found))
    end = max(moment(found[-1]["end"]), moment(view["report"]["window"]["end"]))
    axes = Axes(start, end, low, high)
    points = [_point(one, axes, view["kind"]) for one in known]
    lines = [
        [point for point in points if point["version"] == version]
        for version in dict.fromkeys(point["version"] for point in points)
    ]
    labelled = max(moment(one["end"]) for one in known)
    waiting = None
    if labelled < end:
        waiting = axes.x(labelled.isoformat())
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "points": points,
        "lines": [" ".join(f"{point['x']:.1f},{point['y']}" for point in line) for line in lines],
        "guesses": _guesses(view, axes),
        "releases": _releases(view, axes.x, start.isoformat()),
        "verdicts": _verdicts(view, axes),
        "waiting": waiting,
        "ticks_y": [{"y": axes.y(value), "label": f"{value:.{digits}f}"} for value, digits in _ticks(low, high)],
        "ticks_x": _dates(sorted({one["end"] for one in found}), axes.x, view["kind"]),
    }


def _range(known: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The least and the largest value of the axis."""
    values = [one["log_loss"] for one in known]
    # Intervals of a few rows would flatten what is to be seen: half of them fit.
    half = 1.2 * median(one["high"] - one["log_loss"] for one in known)
    spread = max(max(values) - min(values), half, 0.1 * max(values), 1e-3)
    low = max(0.0, min(values) - spread, min(one["low"] for one in known))
    high = min(max(values) + spread, max(one["high"] for one in known)) + 0.05 * spread
    if low:
        low -= 0.05 * spread
    return low, high


def _point(one: Mapping[str, Any], axes: Axes, kind: str) -> dict[str, Any]:
    """The metric of one version in one window."""
    interval = f"{one['low']:.3f} to {one['high']:.3f}"
    rows = f"{count(one['labelled'])} of {count(one['rows'])} rows labelled"
    return {
        "x": axes.middle(one),
        "y": axes.y(one["log_loss"]),
        "low": axes.y(one["low"]),
        "high": axes.y(one["high"]),
        "version": one["version"],
        "part": one["coverage"] is not None and one["coverage"] < 0.5,
        "told": (
            f"{window(one['end'], kind)}, v{one['version']}: log-loss {one['log_loss']:.3f} ({interval}) nats, {rows}"
        ),
    }


def _guesses(view: View, axes: Axes) -> list[dict[str, Any]]:
    """What was estimated while labels were missing: of earlier windows, and of this one."""
    estimates = {
        one["end"]: one["estimated"] for report in view["history"] for one in report["performance"].get("earlier", [])
    }
    middles = {one["end"]: axes.middle(one) for one in rolling(view)}
    guesses = [
        {"x": middles[when], "y": axes.y(value), "told": f"estimated before the labels came: {value:.3f}"}
        for when, value in estimates.items()
        if when in middles
    ]
    guess = view["report"]["performance"].get("estimate")
    if guess and guess.get("log_loss") is not None:
        told = f"estimated without labels: {guess['log_loss']:.3f}"
        guesses.append({"x": axes.middle(view["report"]["window"]), "y": axes.y(guess["log_loss"]), "told": told})
    return guesses


def _verdicts(view: View, axes: Axes) -> list[dict[str, Any]]:
    """What the gate said, where the time line has begun."""
    found = []
    for row in view["verdicts"]:
        verdict = row["verdict"]
        if verdict["decision"] not in MARKS or moment(row["as_of"]) < axes.start:
            continue
        name, mark = MARKS[verdict["decision"]]
        told = f"{day(row['as_of'])}: {name}, {verdict['reason']}"
        found.append({"x": axes.x(row["as_of"]), "mark": mark, "told": told})
    return found


def _releases(view: View, x: Any, start: str) -> list[dict[str, Any]]:
    """Lines where another version began to serve; labels that would lie on each other take turns on two lines."""
    found: list[dict[str, Any]] = []
    for release in view["releases"]:
        if moment(release["as_of"]) < moment(start):
            continue
        at = x(release["as_of"])
        raised = bool(found) and at - found[-1]["x"] < 34 and not found[-1]["raised"]
        told = f"{day(release['as_of'])}: v{release['champion']}, {release['reason']}"
        found.append(
            {"x": at, "label": f"v{release['champion']}", "action": release["action"], "raised": raised, "told": told}
        )
    return found


def _ticks(low: float, high: float) -> list[tuple[float, int]]:
    """About four round values between ``low`` and ``high``, with the digits that they need."""
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    digits = max(0, -math.floor(math.log10(step)))
    return [(number * step, digits) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dates(ends: Sequence[str], x: Any, kind: str) -> list[dict[str, Any]]:
    """At most eight ends of windows, named by the window before them."""
    every = math.ceil(len(ends) / 8)
    short = {"quarter": "{q}", "month": "%b %y"}.get(kind, "%-d %b")
    found = []
    for end in ends[::-1][::every][::-1]:
        last = moment(end) - timedelta(microseconds=1)
        label = f"Q{(last.month + 2) // 3} {last:%y}" if kind == "quarter" else f"{last:{short}}"
        found.append({"x": x(end), "label": label})
    return found
