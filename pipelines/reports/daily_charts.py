"""The daily page's drawings as numbers and colours; the template draws them, so that every name is escaped once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby, pairwise
from statistics import median
from typing import Any

from pipelines.moments import parse_utc as moment
from pipelines.reports.daily_words import View, count, day, psi, rolling, window

WIDTH = 900
HEIGHT = 300
LEFT = 52
RIGHT = 14
TOP = 34
BOTTOM = 30
STOPS = (
    (0.0, (243, 246, 250)),
    (0.5, (214, 228, 243)),
    (1.0, (253, 224, 142)),
    (2.0, (240, 133, 68)),
    (3.0, (198, 40, 40)),
    (4.0, (96, 10, 32)),
)
"""Colours along :func:`_level`: blue below ``warn``, yellow at it, orange at ``severe``, red far above."""
FLOOR = 0.005
"""The smallest PSI that has a bar, in nats."""
MARKS = {"reject": ("rejected", "cross"), "inconclusive": ("inconclusive", "ring")}


def colour(value: float, warn: float, severe: float) -> str:
    """The heat of a debiased PSI, the same for equal multiples of the thresholds.

    >>> colour(0.0, 0.1, 0.25), colour(0.1, 0.1, 0.25), colour(99.0, 0.1, 0.25)
    ('#f3f6fa', '#fde08e', '#600a20')
    """
    at = _level(value, warn, severe)
    for (low, first), (high, second) in pairwise(STOPS):
        if at <= high:
            part = (at - low) / (high - low)
            return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(first, second, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*STOPS[-1][1])


def _level(value: float, warn: float, severe: float) -> float:
    """0 at nothing, 1 at ``warn``, 2 at ``severe``, then one more for every four times as much."""
    if value <= warn:
        return max(0.0, value) / warn
    if value <= severe:
        return 1 + math.log(value / warn) / math.log(severe / warn)
    return 2 + math.log(value / severe) / math.log(4)


def heat(view: View) -> dict[str, Any]:
    """The heat map: ``groups`` and ``columns`` of its head, and ``rows`` of cells, the strongest now first."""
    found = view["heat"]
    policy = view["policy"]
    version = None
    dates = set(view["report"]["diagnosis"].get("dates", ()))
    ignored = {*policy["ignore"], *(one["feature"] for one in view["report"]["features"] if one["ignored"])}
    columns = []
    busiest = max((column["rows"] for column in found["columns"]), default=0)
    for column in found["columns"]:
        group, label, name = _head(column["end"], found["unit"], view["kind"])
        change = found["unit"] == "window" and version is not None and column["version"] != version
        version = column["version"]
        told = f"{name}: {count(column['rows'])} rows" + (
            "" if version is None else f", against v{version}'s reference"
        )
        volume = round(100 * column["rows"] / busiest) if busiest else 0
        columns.append(
            {
                "group": group,
                "label": label,
                "name": name,
                "told": told,
                "volume": volume,
                "change": change,
                "moved": column["end"] in dates,
            }
        )
    rows = []
    for row in found["rows"]:
        cells = []
        for value, column in zip(row["values"], columns, strict=True):
            told = f"{row['feature']}, {column['name']}: " + ("too few rows" if value is None else f"PSI {psi(value)}")
            cells.append(
                {
                    "told": told,
                    "change": column["change"],
                    "colour": None if value is None else colour(value, policy["warn_psi"], policy["severe_psi"]),
                }
            )
        rows.append(
            {
                "feature": row["feature"],
                "newest": psi(row["values"][-1]) if row["values"] else "-",
                "cells": cells,
                "ignored": row["feature"] in ignored,
            }
        )
    groups = [
        {"label": label, "span": len(list(same))} for label, same in groupby(column["group"] for column in columns)
    ]
    return {
        "groups": groups,
        "columns": columns,
        "rows": rows,
        "unit": found["unit"],
        "of": found["of"],
        "legend": _legend(policy),
    }


def _head(end: str, unit: str, kind: str) -> tuple[str, str, str]:
    """A column's group, its short label and its name."""
    if unit == "day":
        found = moment(end)
        return f"{found:%b %Y}", str(found.day), day(end)
    last = moment(end) - timedelta(microseconds=1)
    name = window(end, kind)
    if kind == "quarter":
        return str(last.year), f"Q{(last.month + 2) // 3}", name
    if kind == "month":
        return str(last.year), f"{last:%b}", name
    return f"{last:%b %Y}", str(last.day), name


def _legend(policy: Mapping[str, Any]) -> list[dict[str, str]]:
    warn = policy["warn_psi"]
    severe = policy["severe_psi"]
    values = (0.0, warn / 2, warn, severe, 4 * severe, 16 * severe)
    return [{"label": f"{value:g}", "colour": colour(value, warn, severe)} for value in values]


def bars(view: View, limit: int) -> dict[str, Any]:
    """This window's debiased PSI of its strongest features on a logarithmic axis, in percent of its width."""
    features = view["report"]["features"]
    policy = view["policy"]
    top = max([10 * FLOOR, 2 * policy["severe_psi"], *(one["debiased_psi"] for one in features)]) * 1.15

    def at(value: float) -> float:
        return round(100 * math.log(max(value, FLOOR) / FLOOR) / math.log(top / FLOOR), 2)

    moved = {one["feature"]: one for one in view["moved"]}
    rows = [
        {
            "feature": one["feature"],
            "width": max(0.6, at(one["debiased_psi"])),
            "value": psi(one["debiased_psi"]),
            "colour": colour(one["debiased_psi"], policy["warn_psi"], policy["severe_psi"]),
            "drifted": one["drifted"],
            "ignored": one["ignored"],
            "severity": one["severity"],
            "moved": moved.get(one["feature"]),
        }
        for one in features[:limit]
    ]
    marks = [
        {"name": name, "value": policy[f"{name}_psi"], "at": at(policy[f"{name}_psi"])} for name in ("warn", "severe")
    ]
    return {"rows": rows, "marks": marks, "of": len(features)}


def metric(view: View) -> dict[str, Any] | None:
    """The log-loss of every window with its interval, releases and verdicts on one time line; None without any labelled window."""
    found = rolling(view)
    known = [one for one in found if one.get("log_loss") is not None]
    if not known:
        return None
    values = [one["log_loss"] for one in known]
    # Intervals of a few rows would flatten what is to be seen: half of them fit.
    spread = max(
        max(values) - min(values), 1.2 * median(one["high"] - one["log_loss"] for one in known), 0.1 * max(values), 1e-3
    )
    low = max(0.0, min(values) - spread)
    high = max(values) + spread
    low = max(low, min(one["low"] for one in known))
    low -= 0.05 * spread if low else 0.0
    high = min(high, max(one["high"] for one in known)) + 0.05 * spread
    start = moment(min(one["start"] for one in found))
    end = max(moment(found[-1]["end"]), moment(view["report"]["window"]["end"]))
    seconds = (end - start).total_seconds()

    def x(when: str) -> float:
        part: float = min(1.0, max(0.0, (moment(when) - start).total_seconds() / seconds))
        return round(LEFT + (WIDTH - LEFT - RIGHT) * part, 1)

    def y(value: float) -> float:
        part: float = (high - min(max(value, low), high)) / (high - low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * part, 1)

    points = [
        {
            "x": (x(one["start"]) + x(one["end"])) / 2,
            "y": y(one["log_loss"]),
            "low": y(one["low"]),
            "high": y(one["high"]),
            "version": one["version"],
            "part": one["coverage"] is not None and one["coverage"] < 0.5,
            "told": f"{window(one['end'], view['kind'])}, v{one['version']}: log-loss {one['log_loss']:.3f} ({one['low']:.3f} to {one['high']:.3f}) nats, {count(one['labelled'])} of {count(one['rows'])} rows labelled",
        }
        for one in known
    ]
    lines = [
        [point for point in points if point["version"] == version]
        for version in dict.fromkeys(point["version"] for point in points)
    ]
    estimates = {
        one["end"]: one["estimated"] for report in view["history"] for one in report["performance"].get("earlier", [])
    }
    middles = {one["end"]: (x(one["start"]) + x(one["end"])) / 2 for one in found}
    guesses = [
        {"x": middles[when], "y": y(value), "told": f"estimated before the labels came: {value:.3f}"}
        for when, value in estimates.items()
        if when in middles
    ]
    guess = view["report"]["performance"].get("estimate")
    if guess and guess.get("log_loss") is not None:
        middle = (x(view["report"]["window"]["start"]) + x(view["report"]["window"]["end"])) / 2
        guesses.append(
            {"x": middle, "y": y(guess["log_loss"]), "told": f"estimated without labels: {guess['log_loss']:.3f}"}
        )
    waiting = max(moment(one["end"]) for one in known)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "points": points,
        "lines": [" ".join(f"{point['x']:.1f},{point['y']}" for point in line) for line in lines],
        "guesses": guesses,
        "releases": _releases(view, x, start.isoformat()),
        "verdicts": [
            {
                "x": x(row["as_of"]),
                "mark": MARKS[row["verdict"]["decision"]][1],
                "told": f"{day(row['as_of'])}: {MARKS[row['verdict']['decision']][0]}, {row['verdict']['reason']}",
            }
            for row in view["verdicts"]
            if row["verdict"]["decision"] in MARKS and moment(row["as_of"]) >= start
        ],
        "waiting": x(waiting.isoformat()) if waiting < end else None,
        "ticks_y": [{"y": y(value), "label": f"{value:.{digits}f}"} for value, digits in _ticks(low, high)],
        "ticks_x": _dates(sorted({one["end"] for one in found}), x, view["kind"]),
    }


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
