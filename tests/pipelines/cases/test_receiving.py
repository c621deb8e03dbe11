"""pipelines/cases/receiving.py: what a source delivers is a row, refused with a reason, counted, or one clear error."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from pipelines.cases import sources
from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.fields import frame_schema
from pipelines.params_file import load_params

PARAMS = load_params("loans")
WINDOW = Window(start=datetime(2020, 5, 1, tzinfo=UTC), end=datetime(2020, 5, 3, tzinfo=UTC))
RAW = pl.concat([loans.generate(date(2020, 5, 1) + timedelta(days=day), rows_per_day=10) for day in range(2)])
ROWS = sources.canonical(RAW, FIELDS, WINDOW, PARAMS)


def _receive(frame: pl.DataFrame, window: Window = WINDOW) -> Received:
    """Received, with every row counted once."""
    found = receive(frame, FIELDS, window, PARAMS)
    counts = found.counts
    assert counts.pop("delivered") == frame.height == sum(counts.values())
    return found


def _with(column: str, value: object, kind: pl.DataType | None = None) -> pl.DataFrame:
    """The rows with one value of the fourth changed, and the column of another type."""
    kind = kind or RAW.schema[column]
    fourth = pl.int_range(pl.len()) == 3
    changed = pl.when(fourth).then(pl.lit(value, dtype=kind)).otherwise(pl.col(column).cast(kind))
    return RAW.with_columns(changed.alias(column))


@pytest.mark.parametrize(
    ("column", "value", "kind", "reason"),
    [
        ("granted", 0.37, pl.Float64(), "granted: not a whole number"),
        ("granted", float("nan"), pl.Float64(), "granted: not a whole number"),
        ("granted", float("inf"), pl.Float64(), "granted: not a whole number"),
        ("granted", 300, pl.Int64(), "granted: neither 0 nor 1"),
        ("granted", -1e30, pl.Float64(), "granted: neither 0 nor 1"),
        ("id", None, None, "id: missing"),
        ("id", "", None, "id: missing"),
        ("event_time", None, None, "event_time: missing"),
    ],
)
def test_a_row_that_cannot_be_one_is_refused_with_its_reason(column, value, kind, reason):
    """One bad id, time or label costs its own row only; it is kept as it came, its label not rounded to a class."""
    found = _receive(_with(column, value, kind))
    assert found.refused["reasons"].to_list() == [reason]
    assert found.rows.equals(ROWS.filter(pl.col("id") != RAW["id"][3]))
    assert f'"car": "{RAW["car"][3]}"' in found.refused["as_delivered"][0]


def test_a_label_from_before_its_row_is_refused():
    """Nobody can know a label before its row: that row is refused with the reason; one of the same moment is taken."""
    moment = pl.col("event_time")
    found = _receive(
        RAW.with_columns(
            label_time=pl.when(pl.int_range(pl.len()) == 3).then(moment - timedelta(seconds=1)).otherwise(moment)
        )
    )
    assert found.refused["reasons"].to_list() == ["label_time: before event_time"]
    assert found.rows["id"].to_list() == ROWS.filter(pl.col("id") != RAW["id"][3])["id"].to_list()


def test_a_value_that_cannot_be_read_is_kept_as_it_came():
    """A number with a decimal comma leaves its field empty, for validation to find, and the row keeps what it was."""
    found = _receive(_with("salary", "52000,5", pl.String()))
    assert found.refused.is_empty()
    assert found.rows.filter(pl.col("salary").is_null())["id"].to_list() == [RAW["id"][3]]
    assert '"salary": "52000,5"' in found.rows.filter(pl.col("salary").is_null())["as_delivered"][0]
    others = found.rows.drop("as_delivered").filter(pl.col("salary").is_not_null())
    assert others.equals(ROWS.filter(pl.col("id") != RAW["id"][3]))


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Enum(["52000", "a lot"])])
def test_categories_are_read_as_their_text(kind: pl.DataType):
    """A number that came as a category is that number, and a word among them leaves its field empty, as text does."""
    fourth = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("a lot")).otherwise(pl.lit("52000"))
    rows = _receive(RAW.with_columns(salary=fourth.cast(kind))).rows
    assert rows["salary"].drop_nulls().to_list() == [52000.0] * (RAW.height - 1)
    assert '"salary": "a lot"' in rows.filter(pl.col("salary").is_null())["as_delivered"][0]


def test_a_missing_value_is_null_and_an_unreadable_one_is_refused():
    """Of a number that may be missing NaN is null, and what was there and is no number is not taken for missing."""
    holes = tuple(replace(field, missing=field.name == "salary") for field in FIELDS.fields)
    fields = replace(FIELDS, fields=holes)
    given = pl.col("salary").cast(pl.String)
    frame = RAW.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("much")).otherwise(given).alias("salary"))
    found = receive(frame, fields, WINDOW, PARAMS)
    assert found.refused["reasons"].to_list() == ["salary: cannot be read"]
    assert '"salary": "much"' in found.refused["as_delivered"][0]
    assert found.rows.height == RAW.height - 1
    found = receive(_with("salary", float("nan")), fields, WINDOW, PARAMS)
    assert found.rows["salary"].null_count() == 1
    assert found.rows.filter(pl.col("salary").is_null())["id"].to_list() == [RAW["id"][3]]
    assert found.refused.is_empty()


def test_times_as_text_need_a_zone():
    """ISO 8601 with a zone is read, whatever the zone; without one, or as anything else, the row is refused."""
    written = RAW["event_time"].dt.convert_time_zone("Asia/Tokyo").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z")
    assert _receive(RAW.with_columns(event_time=written)).rows.equals(ROWS)
    for text in ("2020-05-01T10:00:00", "yesterday", ""):
        fourth = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(text)).otherwise(pl.lit(written))
        found = _receive(RAW.with_columns(event_time=fourth))
        assert found.refused["reasons"].to_list() == ["event_time: not an ISO 8601 time with a time zone"]
        assert found.rows.height == RAW.height - 1


def test_exact_repeats_are_kept_once():
    """A row that is delivered again and again is one row, a refused one refused once; rows that share an id go on."""
    broken = _with("granted", 0.5, pl.Float64())
    found = _receive(pl.concat([broken, broken.reverse(), broken.head(5)]))
    assert (found.rows.height, found.refused.height, found.repeats) == (19, 1, 25)
    assert found.rows.equals(_receive(broken).rows)
    other = _receive(pl.concat([RAW, RAW.head(1).with_columns(age=pl.lit(44.0))]))
    assert (other.rows.height, other.repeats) == (21, 0)


def test_rows_outside_are_counted_apart():
    """A row outside of the case's period, and one that the window does not ask for, are each counted as that."""
    moved = _with("event_time", datetime(1970, 1, 1, tzinfo=UTC))
    found = _receive(moved, Window(start=WINDOW.start, end=WINDOW.start + timedelta(days=1)))
    assert (found.rows.height, found.outside_period, found.outside_window) == (9, 1, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            pl.col("event_time").dt.replace_time_zone(None),
            r"event_time holds Datetime.*2020, 5, 1, 1, 12\)\) without a time zone.*replace_time_zone\('UTC'\)",
        ),
        (pl.col("event_time").dt.date(), r"event_time holds Date \(datetime.date\(2020, 5, 1\)\), a day and no moment"),
        (
            pl.col("event_time").dt.epoch("s"),
            r"event_time holds Int64 \(1588295520\), whose unit could be any.*from_epoch",
        ),
        (pl.col("event_time").dt.epoch("s").cast(pl.Float64), r"event_time holds Float64 .*whose unit could be any"),
        (
            pl.when(pl.col("granted") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("granted"),
            r"granted holds String \('(yes|no)'\), expected 0 or 1",
        ),
        (pl.col("event_time").alias("granted"), "granted holds Datetime"),
        (pl.col("event_time").alias("salary"), r"salary holds Datetime.*expected a number: convert it in source\.py"),
        (pl.concat_list("salary").alias("salary"), r"salary holds List\(Float64\)"),
        (pl.concat_list("salary").alias("car"), r"car holds List\(Float64\).*expected text"),
        (pl.col("salary").alias("id"), "id holds Float64 .*which is no id"),
    ],
)
def test_a_column_that_would_have_to_be_guessed_at_is_one_error(change: pl.Expr, message: str):
    """The error names the case, the column, its type, a value and what to do, instead of making something of it."""
    with pytest.raises(DataError, match=f"loans: {message}"):
        receive(RAW.with_columns(change), FIELDS, WINDOW, PARAMS)


def test_a_frame_that_is_not_the_cases_is_one_error():
    """Missing columns are named with those that are there, another object with its type; further columns do no harm."""
    missing = r"loans: column\(s\) event_time, car missing, the rows delivered have id, education"
    with pytest.raises(DataError, match=missing):
        receive(RAW.drop("event_time", "car"), FIELDS, WINDOW, PARAMS)
    with pytest.raises(DataError, match="loans: rows came as NoneType: give back a polars DataFrame"):
        sources.canonical(None, FIELDS, WINDOW, PARAMS)  # type: ignore[arg-type]
    assert _receive(RAW.with_columns(beside=pl.lit(7))).rows.equals(ROWS)


@pytest.mark.parametrize(
    "change",
    [
        pl.col("granted").cast(pl.Float64),
        pl.col("granted").cast(pl.Boolean),
        pl.col("granted").cast(pl.Int64),
        pl.col("event_time").cast(pl.Datetime("ns", "UTC")),
        pl.col("event_time").dt.convert_time_zone("America/New_York"),
        pl.col("salary").cast(pl.Int64),
        pl.col("salary").cast(pl.String),
        pl.col("car").cast(pl.Categorical),
    ],
)
def test_other_types_that_say_the_same_are_read(change: pl.Expr):
    """Types that leave no doubt end in the very same canonical rows."""
    found = _receive(RAW.with_columns(change))
    assert found.rows.equals(ROWS)
    assert dict(found.rows.schema) == frame_schema(FIELDS)


def test_canonical_form_says_what_it_took_out(caplog: pytest.LogCaptureFixture):
    """Whoever reads a source outside of ingest finds counts and reasons in the log."""
    rows = sources.canonical(
        pl.concat([_with("granted", 0.37, pl.Float64()), RAW.head(2).cast({"granted": pl.Float64})]),
        FIELDS,
        WINDOW,
        PARAMS,
    )
    assert rows.height == 19
    assert re.search(
        r"loans: of 22 rows delivered 1 are refused: granted: not a whole number \(1\), 2 are exact repeats",
        caplog.text,
    )


def test_all_reasons_of_a_row_are_named():
    """A row without id and time carries both reasons, and the count counts both."""
    without = pl.when(pl.col("id").is_not_null()).then("event_time")
    broken = _with("id", None).with_columns(event_time=without)
    found = _receive(broken)
    assert found.refused["reasons"].to_list() == ["id: missing; event_time: missing"]
    assert count_reasons(found.refused) == {"event_time: missing": 1, "id: missing": 1}
