"""pipelines/inspection/declaring.py: a declared source reads what was looked at, or it is told why none can."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipelines.cases.receiving import receive
from pipelines.cli import looking
from pipelines.cli.looking import Where
from pipelines.contracts import Window
from pipelines.inspection import declaring, writing
from pipelines.inspection.guesses import expression
from pipelines.inspection.table import Asked, inspect
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.inspection.frames import customers, draws

ROWS = 300
RNG = draws()
DAYS = [date(2023, 1, 1) + timedelta(days=row) for row in range(ROWS)]
LOCAL = [datetime(2023, 1, 1) + timedelta(hours=7 * row) for row in range(ROWS)]


def words(of: list[str]) -> list[str]:
    """One of these for each row."""
    return [of[row % len(of)] for row in range(ROWS)]


def label(values: list) -> pl.DataFrame:
    """Customers with another label, which is no column's copy."""
    return customers(ROWS, churned=None).with_columns(churned=pl.Series(values, strict=False))


CUSTOMERS = customers(ROWS)
SEEN = {
    "plain": (CUSTOMERS, {}),
    "other names": (CUSTOMERS.rename({"age": "Age (years)"}), {}),
    "no id": (CUSTOMERS, {"id": None}),
    "holes": (CUSTOMERS.with_columns(age=pl.when(pl.col("age") % 7 > 0).then("age")), {}),
    "no zone": (CUSTOMERS.with_columns(at=pl.Series(LOCAL)), {"zone": "Europe/Berlin"}),
    "days": (CUSTOMERS.with_columns(at=pl.Series(DAYS), due=pl.Series(DAYS).shift(-9)), {}),
    "numbers as times": (CUSTOMERS.with_columns(at=pl.col("at").dt.epoch("s")), {}),
    "yes and no": (CUSTOMERS.with_columns(churned=pl.Series(words(["yes", "no", "no"]))), {}),
    "one and two": (CUSTOMERS.with_columns(churned=pl.Series([1 + row % 3 // 2 for row in range(ROWS)])), {}),
    "flags": (CUSTOMERS.with_columns(paid=pl.Series(RNG.integers(0, 2, ROWS)) == 1), {}),
    "classes": (CUSTOMERS.with_columns(churned=pl.Series(words(["red", "blue", "green"]))), {}),
    "numbers as classes": (
        CUSTOMERS.with_columns(churned=pl.Series([3 + 4 * (row % 3) for row in range(ROWS)])),
        {"target": "classes"},
    ),
    "a number": (CUSTOMERS.with_columns(churned=pl.Series(RNG.normal(0, 9, ROWS))), {}),
    "label time": (CUSTOMERS.with_columns(known=pl.col("at") + timedelta(days=3)), {"label_time": "known"}),
}
"""What a declared source says whatever the file is."""
TEXTS = {
    "missing words": CUSTOMERS.with_columns(income=pl.Series(["NA", *map(str, RNG.integers(0, 9_000, ROWS - 1))])),
    "quoted empties": CUSTOMERS.with_columns(plan=pl.Series(words(["basic", "plus", "pro", ""]))),
}
"""What a CSV says and a Parquet file of texts does not."""
CODE = {
    "days first": (
        CUSTOMERS.with_columns(at=pl.Series(DAYS).dt.strftime("%d.%m.%Y")),
        "at: times as %d.%m.%Y are no ISO 8601",
    ),
    "UTC in words": (
        CUSTOMERS.with_columns(at=pl.col("at").dt.strftime("%Y-%m-%d %H:%M:%S UTC")),
        "at: times with UTC behind them",
    ),
    "spaces": (
        CUSTOMERS.with_columns(income=pl.Series([f" {value}" for value in RNG.integers(0, 9_000, ROWS)])),
        "income: spaces around",
    ),
    "ids as floats": (
        CUSTOMERS.with_columns(store_id=pl.Series([float(row % 5) for row in range(ROWS)])),
        "store_id: numbers with decimals are made whole again",
    ),
    "a word that is a value elsewhere": (
        TEXTS["missing words"].with_columns(region=pl.Series(words(["NA", "EU", "ASIA"]))),
        "region: 'NA' is a value there",
    ),
}
"""What needs a source.py."""


def looked_at(frame: pl.DataFrame, ending: str, tmp_path: Path, **more):
    """What is found in a file of these rows, and the place and the declaration that go with it."""
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        frame.write_csv(path, quote_style="non_numeric")
    elif ending == "json":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    asked = Asked(**{"case": "churn", "label": "churned", "time": "at", "id": "key"} | more)
    look = looking.look_at(asked, Where(str(path)), Settings(home=tmp_path / "state"))
    found = inspect(look.frame, asked, look.extent)
    return look, found, declaring.declared(found, look.frame, look.place)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
@pytest.mark.parametrize("name", [*SEEN, *TEXTS])
def test_a_declared_source_reads_what_was_looked_at(name, ending, tmp_path):
    """Each row of the declared source is the one that the look has made of the file, in every format."""
    frame, more = SEEN.get(name) or (TEXTS[name], {})
    look, found, how = looked_at(frame, ending, tmp_path, **more)
    if name in TEXTS and ending != "csv":
        assert "stands for a missing value" in how.why_not[0]
        return
    assert how.why_not == ()
    (tmp_path / "params.yaml").write_text(writing.params(found, look.place, how.options))
    params = load_params("churn", tmp_path / "params.yaml")
    window = Window(start=params.period[0], end=found.volume.last + timedelta(days=2))
    read = receive(looking.read(look, how.options, found.fields, window), found.fields, window, params)
    made = look.frame.select(**{own: expression(text) for own, text in found.reads.items()})
    expected = receive(made, found.fields, window, params)
    assert read.counts == expected.counts
    assert read.rows.height == ROWS
    columns = ["event_time", *found.fields.names, found.fields.label] + (["id"] if found.asked.id else [])
    assert read.rows.sort("event_time").select(columns).equals(expected.rows.sort("event_time").select(columns))
    if found.asked.label_time:
        assert (read.rows["label_time"] - read.rows["event_time"]).unique().to_list() == [timedelta(days=3)]


@pytest.mark.parametrize("name", CODE)
def test_what_no_declaration_says_is_told(name, tmp_path):
    """Times in another order, spaces, ids as floats and a word of two meanings need a source.py, which says so."""
    frame, words_of_it = CODE[name]
    look, found, how = looked_at(frame, "parquet" if "float" in name else "csv", tmp_path)
    assert any(why.startswith(words_of_it) for why in how.why_not), how.why_not
    files = writing.files(found, look.place, how, "")
    assert f"- {words_of_it}" in files["source.py"]
    assert "kind:" not in files["params.yaml"].partition("source:")[2]
    assert "source.py" not in writing.files(found, look.place, declaring.Declared(how.options, ()), "")


def test_the_parameters_say_what_was_guessed_and_from_how_many_rows(tmp_path):
    """Each line that init decided has its reason; a zone and a unit that somebody named are no guesses."""
    frame = CUSTOMERS.with_columns(at=pl.Series(LOCAL))
    look, found, how = looked_at(frame, "csv", tmp_path)
    text = writing.params(found, look.place, how.options)
    assert f"time_zone: UTC  # assumed: the times of {ROWS} rows have none" in text
    assert f"label_delay_days: 1  # a guess: no row of {ROWS} shows it" in text
    assert "train:" not in text
    look, found, how = looked_at(frame, "csv", tmp_path, zone="Asia/Tokyo")
    assert "time_zone: Asia/Tokyo\n" in writing.params(found, look.place, how.options)
    assert found.volume.first == datetime(2022, 12, 31, 15, tzinfo=UTC)


@pytest.mark.parametrize(("unit", "per"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_a_unit_of_times_is_the_one_that_fits(unit, per, tmp_path):
    """Numbers are times in the unit in which all lie from 1990 to 2100, and that is told as assumed."""
    frame = CUSTOMERS.with_columns(at=pl.col("at").dt.epoch("s") * per)
    _, found, how = looked_at(frame, "parquet", tmp_path)
    assert how.options["time_unit"] == unit
    assert found.volume.first == CUSTOMERS["at"][0]
    assert f"read as {unit} since 1970" in " ".join(found.notes)


def test_a_file_is_declared_by_its_place_in_the_folder_of_the_data(tmp_path):
    """Below PERENNIAL_DATA_DIR a file is named relatively, so that a case moves; elsewhere absolutely."""
    settings = Settings(home=tmp_path / "state", data_dir=tmp_path / "data")
    for folder in ("data", "state/data", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.csv").touch()
    (tmp_path / "state" / "data" / "own.csv").touch()
    assert looking._url(str(tmp_path / "data" / "rows.csv"), settings) == "rows.csv"
    assert looking._url(str(tmp_path / "data" / "*.csv"), settings) == "*.csv"
    assert looking._url(str(tmp_path / "state" / "data" / "own.csv"), settings) == "own.csv"
    for folder in ("state/data", "other"):
        path = str(tmp_path / folder / "rows.csv")
        assert looking._url(path, settings) == path
