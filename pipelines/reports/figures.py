"""Figures of the daily page in words: days, windows, counts and intervals as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pipelines.moments import parse_utc as moment


def day(text: str) -> str:
    """A date for people.

    >>> day("2020-06-04T00:00:00Z")
    '4 Jun 2020'
    """
    found = moment(text)
    return f"{found.day} {found:%b %Y}"


def window(end: str, kind: str) -> str:
    """The name of the window that ends at ``end``.

    >>> window("2015-10-01T00:00:00Z", "quarter"), window("2009-05-01T00:00:00Z", "month")
    ('Q3 2015', 'April 2009')
    >>> window("2020-06-05T00:00:00Z", "day")
    '4 Jun 2020'
    """
    last = moment(end) - timedelta(microseconds=1)
    if kind == "quarter":
        return f"Q{(last.month + 2) // 3} {last.year}"
    if kind == "month":
        return f"{last:%B %Y}"
    if kind == "day":
        return day(last.isoformat())
    return f"week to {day(last.isoformat())}"


def count(number: float) -> str:
    """A number of rows.

    >>> count(12345)
    '12,345'
    """
    return f"{number:,.0f}"


def psi(value: float | None) -> str:
    """A PSI in as many digits as mean something; ``-`` for none, 0 for one that is below its null expectation.

    >>> psi(0.0312), psi(17.94), psi(-0.004), psi(None)
    ('0.031', '18', '0', '-')
    """
    if value is None:
        return "-"
    if value <= 0:
        return "0"
    if value < 1:
        return f"{value:.3f}"
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.0f}"


def quantity(value: float) -> str:
    """A value in a field's own units.

    >>> quantity(52345.6), quantity(0.51234), quantity(5228.1), quantity(0.0)
    ('52,346', '0.512', '5,228', '0')
    """
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(found: Mapping[str, Any], *, sign: bool = True) -> str:
    """A figure with its interval.

    >>> interval({"value": 0.47, "low": 0.2287, "high": 0.71})
    '+0.470 (+0.229 to +0.710)'
    """
    form = "+.3f" if sign else ".3f"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"
