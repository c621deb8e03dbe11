"""Figures of the daily page in words: days, windows, counts and intervals as people read them."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from pipelines.amounts import spread
from pipelines.contracts import Evidence, Interval
from pipelines.drift_report import Measure
from pipelines.moments import day
from pipelines.params import METRICS


def window(end: datetime, kind: str) -> str:
    """The name of the window that ends at ``end``.

    >>> window(datetime(2015, 10, 1), "quarter"), window(datetime(2009, 5, 1), "month")
    ('Q3 2015', 'April 2009')
    >>> window(datetime(2020, 6, 5), "day")
    '4 Jun 2020'
    """
    return window_of((end - timedelta(microseconds=1)).date(), kind)


def window_of(last: date, kind: str) -> str:
    """The name of the window whose last day is ``last``."""
    if kind == "quarter":
        return f"Q{(last.month + 2) // 3} {last.year}"
    if kind == "month":
        return f"{last:%B %Y}"
    if kind == "day":
        return day(last)
    return f"week to {day(last)}"


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


def interval(found: Interval) -> str:
    """A difference with its interval.

    >>> interval(Interval(value=0.47, low=0.2287, high=0.71))
    '+0.470 (+0.229 to +0.710)'
    """
    return spread(found, signed=True)


def lift(evidence: Evidence, measure: Measure) -> str:
    """The lift of a verdict in the unit of its metric, which shares, ranks and costs do not have; empty without one.

    >>> seen = Evidence(metric="mae", n=9, positives=9, opponent="champion", lift=Interval(value=2, low=1, high=3))
    >>> lift(seen, Measure(unit="min")), lift(seen.model_copy(update={"metric": "roc_auc"}), Measure())
    ('mae by +2.000 (+1.000 to +3.000) min', 'roc-auc by +2.000 (+1.000 to +3.000)')
    """
    if evidence.lift is None:
        return ""
    units = {"log_loss": "nats"} | dict.fromkeys(METRICS["number"], measure.unit)
    unit = units.get(evidence.metric, "")
    return f"{evidence.metric.replace('_', '-')} by {interval(evidence.lift)} {unit}".rstrip()
