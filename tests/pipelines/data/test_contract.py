"""pipelines/data/contract.py: every bad row is found, with every reason; good rows pass untouched."""

from datetime import date, timedelta

import polars as pl
import pytest

from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.data import contract
from pipelines.errors import DataError
from pipelines.fields import Fields, Numeric, frame_schema

GOOD = (
    loans.generate(date(2020, 5, 1), rows_per_day=20)
    .with_columns(label_time=pl.col("event_time") + timedelta(days=7))
    .select(pl.col(name).cast(kind) for name, kind in frame_schema(FIELDS).items())
)


def _with(column: str, value: object, row: int = 3) -> pl.DataFrame:
    at = pl.int_range(pl.len()) == row
    return GOOD.with_columns(
        pl.when(at).then(pl.lit(value, dtype=GOOD.schema[column])).otherwise(pl.col(column)).alias(column)
    )


def test_good_rows_pass_untouched():
    """Rows that keep the contract come back as they are, and the quarantine is empty with its column there."""
    good, bad = contract.split(GOOD, FIELDS)
    assert good.equals(GOOD)
    assert bad.is_empty()
    assert bad.columns == [*GOOD.columns, "reasons"]
    assert contract.count_reasons(bad) == {}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("education", "phd", "education: unknown category"),
        ("education", None, "education: missing or not a number"),
        ("salary", None, "salary: missing or not a number"),
        ("salary", -1.0, "salary: below 0"),
        ("age", 101.0, "age: above 100"),
        ("age", 30.5, "age: not a whole number"),
        ("salary", float("nan"), "salary: missing or not a number"),
        ("salary", float("inf"), "salary: above 1e+06"),
        ("granted", 2, "granted: neither 0 nor 1"),
        ("event_time", None, "event_time: missing or not a number"),
    ],
)
def test_each_kind_of_fault_is_found(column: str, value: object, reason: str):
    """The one row with the fault goes to quarantine with its reason, all others go on."""
    good, bad = contract.split(_with(column, value), FIELDS)
    assert good.height == GOOD.height - 1
    assert reason in bad["reasons"][0].split("; ")
    assert bad["id"].to_list() == [GOOD["id"][3]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("inf"), "x: infinite"),
        (float("-inf"), "x: infinite"),
        (float("nan"), "x: missing or not a number"),
        (1e39, "x: too large for a 32-bit float"),
        (-1e300, "x: too large for a 32-bit float"),
    ],
)
@pytest.mark.parametrize("field", [Numeric("x"), Numeric("x", integer=True), Numeric("x", low=-1e38)])
def test_a_number_without_bounds_is_finite_and_fits_float32(field: Numeric, value: float, reason: str):
    """Where a side is open, what the model could only read as infinity is set apart, and the other rows go on."""
    fields = Fields(case="made", label="y", fields=(field,))
    numbers = {"x": [1.0, value, 3e38], "y": [0, 1, None]}
    rows = pl.DataFrame({"id": ["a", "b", "c"], "event_time": GOOD["event_time"][:3], **numbers, "label_time": None})
    good, bad = contract.split(rows.cast(frame_schema(fields)), fields)
    assert good["id"].to_list() == ["a", "c"]
    assert reason in bad["reasons"][0].split("; ")
    assert "not a whole number" not in bad["reasons"][0]


def test_a_missing_label_is_no_fault():
    """A label that has not arrived leaves its row good."""
    assert contract.split(_with("granted", None), FIELDS)[1].is_empty()


def test_all_reasons_of_a_row_are_named():
    """A row with two faults carries both, and the count counts both."""
    frame = _with("age", 5.0).with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("tesla")).otherwise(pl.col("car")).alias("car")
    )
    _, bad = contract.split(frame, FIELDS)
    assert bad["reasons"].to_list() == ["age: below 18; car: unknown category"]
    assert contract.count_reasons(bad) == {"age: below 18": 1, "car: unknown category": 1}


def test_rows_that_share_an_id_are_all_bad():
    """Nobody can say which of two rows with one id is the row."""
    _, bad = contract.split(_with("id", GOOD["id"][0]), FIELDS)
    assert bad.height == 2
    assert set(bad["reasons"]) == {"id: not unique"}


def test_a_wrong_type_blames_the_source():
    """A column of another type, or none, is nobody's row: the error names the column."""
    with pytest.raises(DataError, match="salary"):
        contract.split(GOOD.with_columns(pl.col("salary").cast(pl.String)), FIELDS)
    with pytest.raises(DataError, match="car"):
        contract.split(GOOD.drop("car"), FIELDS)
