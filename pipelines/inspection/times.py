"""Times that stand as text: which format they have, and the expression that makes moments in UTC of them."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipelines.inspection.guesses import col
from pipelines.moments import parse_moment

ISO = "%Y-%m-%dT%H:%M:%S%.6fZ"
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
CLOCKS = ("%H:%M:%S%.f", "%H:%M")
FORMATS = (
    *DATES,
    *(f"{date}{between}{clock}" for date in DATES[:7] for between in (" ", "T") for clock in CLOCKS),
)
SAMPLE = 2_000


@dataclass(frozen=True)
class Times:
    """How a column of times is read: the expression's text, and what was assumed. ``mistake``: it cannot be told."""

    reads: str
    assumed: str = ""
    mistake: str = ""


def of_column(values: pl.Series) -> Times | None:
    """How the times of a column are read; None if it holds none, or one of its texts is no time of the format found.

    Texts that are not times of the format stay as they are, so that the door to canonical rows refuses them.
    """
    name, kind = values.name, values.dtype
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            return Times(col(name))
        return Times(f"{col(name)}.dt.replace_time_zone('UTC')", "times without a zone, read as UTC")
    if kind == pl.Date:
        return Times(f"{col(name)}.cast(pl.Datetime('us', 'UTC'))", "days, read as midnight in UTC")
    if kind != pl.String:
        return None
    there = values.drop_nulls()
    if there.is_empty() or not there.str.contains(r"\d").all():
        return None
    if _have_zones(there):
        return Times(col(name))
    return _in_a_format(name, there)


def _have_zones(there: pl.Series) -> bool:
    """Whether all are ISO 8601 with a zone: a sample first, as most columns are none."""

    def reads(text: str) -> bool:
        try:
            parse_moment(text)
        except ValueError:
            return False
        return True

    sample = there.head(SAMPLE)
    return all(map(reads, sample)) and (there.len() <= SAMPLE or all(map(reads, there[SAMPLE:])))


def _in_a_format(name: str, there: pl.Series) -> Times | None:
    sample = there.head(SAMPLE)
    fitting = [found for found in FORMATS if _parsed(sample, found).null_count() == 0]
    fitting = [found for found in fitting if _parsed(there, found).null_count() == 0]
    if not fitting:
        return None
    first = fitting[0]
    if any(not _parsed(there, other).equals(_parsed(there, first)) for other in fitting[1:]):
        means = f"{_parsed(there, first)[0]:%Y-%m-%d} or {_parsed(there, fitting[1])[0]:%Y-%m-%d}"
        return Times(col(name), mistake=f"{there[0]!r} could be {means}: write days as 2024-05-31")
    parse = f"{col(name)}.str.to_datetime({first!r}, strict=False).dt.replace_time_zone('UTC')"
    assumed = f"text as {first}, read as UTC"
    if "%H" not in first:
        parse = f"{col(name)}.str.to_date({first!r}, strict=False).cast(pl.Datetime('us', 'UTC'))"
        assumed = f"days as {first}, read as midnight in UTC"
    return Times(f"pl.coalesce({parse}.dt.strftime({ISO!r}), {col(name)})", assumed)


def _parsed(values: pl.Series, found: str) -> pl.Series:
    if "%H" in found:
        return values.str.to_datetime(found, strict=False, time_unit="us")
    return values.str.to_date(found, strict=False).cast(pl.Datetime("us"))
