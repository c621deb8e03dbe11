"""Times that stand as text: which format they have, and the expression that makes moments in UTC of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from pipelines.inspection.guesses import col, shown
from pipelines.moments import parse_moment

ISO = "%Y-%m-%dT%H:%M:%S%.6fZ"
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
CLOCKS = ("%H:%M:%S%.f", "%H:%M")
FORMATS = (
    *DATES,
    *(f"{date}{between}{clock}" for date in DATES[:7] for between in (" ", "T") for clock in CLOCKS),
)
DECLARED = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
"""The formats that a declared source reads."""
UTC = r"\s?(UTC|GMT)$"
SAMPLE = 2_000
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SINCE, UNTIL = 631_152_000, 4_102_444_800
"""Seconds from 1970 to 1990 and to 2100: numbers between them, in one unit, are taken for times."""


@dataclass(frozen=True)
class Times:
    """How a column of times is read: the expression's text, and what was assumed. ``mistake``: it cannot be told.

    ``zone`` and ``unit`` are what a declared source has to say of them; ``code`` says why it cannot.
    """

    reads: str
    assumed: str = ""
    mistake: str = ""
    zone: str | None = None
    unit: str | None = None
    code: str = ""


def of_column(values: pl.Series, zone: str | None = None) -> Times | None:
    """How the times of a column are read; None if it holds none, or one of its texts is no time of the format found.

    ``zone`` is that of times without one; not given, UTC is assumed. Texts that are not times of the format stay as
    they are, so that the door to canonical rows refuses them.
    """
    name, kind = values.name, values.dtype
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            return Times(col(name))
        return _local(f"{col(name)}.cast(pl.Datetime('us'))", "times without a zone, read as {zone}", zone)
    if kind == pl.Date:
        return _local(f"{col(name)}.cast(pl.Datetime('us'))", "days, read as midnight in {zone}", zone)
    if kind != pl.String:
        return None
    there = values.drop_nulls()
    if there.is_empty() or not there.str.contains(r"\d").all():
        return None
    if _have_zones(there):
        return Times(col(name))
    if there.str.contains(UTC).all():  # BigQuery writes it behind its times
        found = _in_a_format(name, there.str.replace(UTC, ""), "UTC")
        bare = f"{col(name)}.str.replace({UTC!r}, '')"
        return found and replace(
            found, reads=found.reads.replace(col(name), bare, 1), code="times with UTC behind them"
        )
    return _in_a_format(name, there, zone)


def of_numbers(values: pl.Series, unit: str | None = None) -> Times | None:
    """How a column of numbers since 1970 is read, in the ``unit``, or in the one in which all lie from 1990 to 2100.

    None if it holds something else than numbers, or no unit fits.
    """
    numbers = values.drop_nulls().cast(pl.Float64, strict=False)
    if numbers.is_empty() or numbers.null_count() or not numbers.is_finite().all():
        return None
    low, high = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type] # numbers
    fitting = [name for name, per in PER_SECOND.items() if SINCE * per <= low and high < UNTIL * per]
    if unit is None and not fitting:
        return None
    found = unit or fitting[0]
    number = col(values.name)
    if values.dtype == pl.String:
        number = f"{number}.cast(pl.Float64, strict=False)"
    micro = f"({number} * {10**6 / PER_SECOND[found]!r}).round().cast(pl.Int64)"
    reads = f"{micro}.cast(pl.Datetime('us')).dt.replace_time_zone('UTC')"
    if values.dtype == pl.String:
        reads = f"pl.coalesce({reads}.dt.strftime({ISO!r}), {col(values.name)})"
    assumed = "" if unit else f"numbers such as {shown(values.head(1))}, read as {found} since 1970"
    return Times(reads, assumed, unit=found)


def _local(local: str, assumed: str, zone: str | None, text: str = "", code: str = "") -> Times:
    """Of an expression of times without a zone; ``text``: what is left of a value that is none."""
    found = zone or "UTC"
    reads = f"{local}.dt.replace_time_zone({found!r}, ambiguous='earliest', non_existent='null')"
    reads = f"{reads}.dt.convert_time_zone('UTC')"
    if text:
        reads = f"pl.coalesce({reads}.dt.strftime({ISO!r}), {text})"
    return Times(reads, "" if zone else assumed.format(zone=found), zone=found, code=code)


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


def _in_a_format(name: str, there: pl.Series, zone: str | None) -> Times | None:
    sample = there.head(SAMPLE)
    fitting = [found for found in FORMATS if _parsed(sample, found).null_count() == 0]
    fitting = [found for found in fitting if _parsed(there, found).null_count() == 0]
    if not fitting:
        return None
    first = fitting[0]
    if any(not _parsed(there, other).equals(_parsed(there, first)) for other in fitting[1:]):
        means = f"{_parsed(there, first)[0]:%Y-%m-%d} or {_parsed(there, fitting[1])[0]:%Y-%m-%d}"
        return Times(col(name), mistake=f"{there[0]!r} could be {means}: write days as 2024-05-31")
    parse = f"{col(name)}.str.to_datetime({first!r}, strict=False, time_unit='us')"
    assumed = f"text as {first}, read as {{zone}}"
    if "%H" not in first:
        parse = f"{col(name)}.str.to_date({first!r}, strict=False).cast(pl.Datetime('us'))"
        assumed = f"days as {first}, read as midnight in {{zone}}"
    code = "" if first in DECLARED else f"times as {first} are no ISO 8601"
    return _local(parse, assumed, zone, col(name), code)


def _parsed(values: pl.Series, found: str) -> pl.Series:
    if "%H" in found:
        return values.str.to_datetime(found, strict=False, time_unit="us")
    return values.str.to_date(found, strict=False).cast(pl.Datetime("us"))
