"""The daily page's drawings as numbers and colours; the template draws them, so that every name is escaped once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby, pairwise
from typing import Any

from pipelines.moments import parse_utc as moment
from pipelines.reports.daily_words import View
from pipelines.reports.figures import count, day, psi, window

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
        told = f"{name}: {count(column['rows'])} rows"
        if version is not None:
            told += f", against v{version}'s reference"
        volume = round(100 * column["rows"] / max(busiest, 1))
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
    rows = [
        {
            "feature": row["feature"],
            "newest": psi(next(iter(row["values"][::-1]), None)),
            "cells": [_cell(row["feature"], *one, policy) for one in zip(row["values"], columns, strict=True)],
            "ignored": row["feature"] in ignored,
        }
        for row in found["rows"]
    ]
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


def _cell(feature: str, value: float | None, column: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """One feature in one column; without a colour where there were too few rows."""
    cell = {"told": f"{feature}, {column['name']}: too few rows", "change": column["change"], "colour": None}
    if value is None:
        return cell
    told = f"{feature}, {column['name']}: PSI {psi(value)}"
    return {**cell, "told": told, "colour": colour(value, policy["warn_psi"], policy["severe_psi"])}


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
