"""pipelines/inspection: what a column is taken for, and why; what nobody can tell is left out and told."""

from __future__ import annotations

from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.fields import Attribute, Binary, Categorical, Classes, Flag, Moment, Number, Numeric, Text, Vector
from pipelines.inspection import columns, labels
from pipelines.inspection.guesses import expression
from pipelines.inspection.table import Asked, inspect
from tests.pipelines.inspection.frames import customers, draws

ROWS = 600
RNG = draws()
WORDS = np.array(["the", "customer", "asked", "twice", "about", "an", "invoice", "and", "left"])


def guessed(values: list | np.ndarray, name: str = "x"):
    """What is guessed of a column with these values, over half a year."""
    return columns.guess(pl.Series(name, values, strict=False), name, days=180)


def texts(rows: int = ROWS) -> list[str]:
    """Free text."""
    return [" ".join(RNG.choice(WORDS, 7)) for _ in range(rows)]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (RNG.integers(18, 95, ROWS), Numeric("x", 0, 500, integer=True)),
        ([None, *RNG.uniform(-3, 9, ROWS - 2), float("nan")], Numeric("x", -100, 100, missing=True)),
        (np.arange(ROWS) % 2, Numeric("x", 0, 1, integer=True)),
        ([True, False, None] * 200, Flag("x", missing=True)),
        (["True", "False"] * 300, Flag("x")),
        (["yes", "no"] * 300, Categorical("x", ("no", "yes"))),
        (["a", "b", "c"] * 200, Categorical("x", ("a", "b", "c"), other=True)),
        (["a", "b", "", "c"] * 150, Categorical("x", ("a", "b", "c"), missing=True, other=True)),
        ([*["a", "b", "c"] * 200, "typo"], Categorical("x", ("a", "b", "c"), other=True)),
        (["01067", "20095", "80331"] * 200, Categorical("x", ("01067", "20095", "80331"), other=True)),
        ([f"{value:.2f}" for value in RNG.uniform(0, 9, ROWS)], Numeric("x", 0, 50)),
        (["NA", *map(str, RNG.integers(0, 9, ROWS))], Numeric("x", 0, 50, integer=True, missing=True)),
        ([f"k-{row}" for row in range(ROWS)], Attribute("x")),
        ([date(2023, 1 + row % 12, 1) for row in range(ROWS)], Moment("x", ("weekday", "age"))),
        ([f"2023-0{1 + row % 9}-01 0{row % 9}:30" for row in range(ROWS)], Moment("x", ("hour", "weekday", "age"))),
        ([[0.1, 0.2, 0.3]] * ROWS, Vector("x", 3)),
        (texts(), Text("x")),
    ],
)
def test_what_a_column_is(values, field):
    """Numbers, keys, vocabularies, times, flags and texts are told apart, with holes and room for what is to come."""
    found = guessed(values)
    assert found.field == field
    assert f"{len(values):,}" in found.why


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([None] * ROWS, "empty in all 600 rows"),
        (["", " "] * 300, "empty in all 600 rows"),
        ([7] * ROWS, "7 in all 600 rows"),
        ([f"{1 + row % 12}/{1 + row % 11}/2024" for row in range(ROWS)], "could be"),
        ([*map(str, RNG.integers(0, 900, 400)), *(f"w{row}" for row in range(200))], "66.7% of 600 values are numbers"),
        ([[1.0] * (1 + row % 2) for row in range(ROWS)], "lists of 2 lengths"),
        ([{"a": 1}, {"a": 2}] * 300, "it holds Struct"),
        ([f"{row},{row:03}" for row in range(ROWS)], "numbers as people write them, such as '0,000'"),
        ([f"{row},5 €" for row in range(ROWS)], "numbers as people write them, such as '0,5 €'"),
        ([f"[{row}, 2]" for row in range(ROWS)], "lists or objects as text"),
    ],
)
def test_what_nobody_can_tell_is_left_out_and_told(values, why):
    """Empty and constant columns, days that may be months, numbers among texts and nested values are no fields."""
    found = guessed(values)
    assert found.field is None
    assert why in found.why


def test_decimal_commas_are_read_where_they_can_be_nothing_else():
    """A comma with one digit behind it in some rows stands between no thousands; what is no number is refused later."""
    values = ["NA", "-0,5", "12", " 3,25", *(f"{row},{row % 7}" for row in range(ROWS - 4))]
    found = guessed(values)
    assert found.field == Numeric("x", -5000, 5000, missing=True)
    assert (found.code, found.nulls) == (columns.COMMAS, ("NA",))
    read = pl.DataFrame({"x": [*values[:4], "1.234,5"]}).select(expression(found.reads).cast(pl.Float64, strict=False))
    assert read.to_series().to_list() == [None, -0.5, 12.0, 3.25, None]


def test_ids_read_as_floats_are_made_whole_again():
    """A key with a hole, which every reader of files makes a float of, is a text without decimals."""
    values = [None, *(float(1_000_000 + row) for row in range(ROWS - 1))]
    found = guessed(values, "customer_id")
    assert found.field == Attribute("customer_id", missing=True)
    read = pl.DataFrame({"customer_id": values}).select(expression(found.reads)).to_series()
    assert read[1] == "1000000"
    few = guessed([float(row % 4) for row in range(ROWS)], "store_id")
    assert few.field == Categorical("store_id", ("0", "1", "2", "3"), other=True)


def test_a_text_that_is_no_time_is_not_taken_for_a_missing_one():
    """The expression of a column of times leaves what it cannot read as it stands, so that the row is refused."""
    found = guessed([f"{1 + row % 28}.2.2023" for row in range(ROWS)])
    later = pl.DataFrame({"x": ["3.2.2023", "unknown", None]})
    assert later.select(expression(found.reads)).to_series().to_list() == [
        "2023-02-03T00:00:00.000000Z",
        "unknown",
        None,
    ]


@pytest.mark.parametrize(
    ("values", "target", "read"),
    [
        ([0, 1, None] * 50, Binary(), [0, 1, None]),
        (["yes", "no", ""] * 50, Binary(), [1, 0, None]),
        ([True, False] * 50, Binary(), [True, False]),
        ([2, 1, 1] * 50, Binary(), [1, 0, 0]),
        (["red", "blue", "none"] * 50, Classes(("blue", "none", "red")), [2, 0, 1]),
        ([0.5 * row for row in range(90)], Number("1", 0, 500), [0.0, 0.5]),
        ([f"{0.5 * row}" for row in range(90)], Number("1", 0, 500), [0.0, 0.5]),
    ],
)
def test_what_the_label_is(values, target, read):
    """Two values are binary, words are classes, many numbers are a number; each is read as it is learned."""
    series = pl.Series("y", values, strict=False)
    found = labels.guess(series)
    assert found.target == target
    assert series.to_frame().select(expression(found.reads).alias("y")).to_series().head(len(read)).to_list() == read


def test_labels_that_differ_in_capitals_alone_are_classes_if_it_is_said():
    """Who says what the label is, is believed."""
    assert labels.guess(pl.Series("y", ["Yes", "no", "No"] * 50), "classes").target == Classes(("No", "Yes", "no"))


def test_a_label_that_nobody_foresaw_is_refused_later():
    """Another word in a later file becomes no class at all, and another text among numbers no number."""
    for values, beyond in ((["yes", "no"] * 50, 2), (["a", "b", "c"] * 50, 3)):
        found = labels.guess(pl.Series("y", values))
        assert pl.DataFrame({"y": ["perhaps"]}).select(expression(found.reads).alias("y")).item() == beyond
    found = labels.guess(pl.Series("y", [f"{row / 2}" for row in range(90)]))
    assert np.isnan(pl.DataFrame({"y": ["much"]}).select(expression(found.reads).alias("y")).item())


@pytest.mark.parametrize(
    ("values", "asked", "words"),
    [
        ([1, 2, 3] * 50, None, "say --target classes or --target number"),
        ([1] * 90, None, "nothing to learn"),
        ([None] * 90, None, "empty in all 90 rows"),
        ([f"w{row}" for row in range(90)], None, "90 different texts"),
        (["Yes", "no", "No"] * 50, None, r"written in several ways \('No', 'no'\)"),
        (["yes", "yes "] * 50, None, "written in several ways"),
        ([1, 2, 3] * 50, "binary", "binary has two"),
        (["a", "b"] * 50, "number", "is no number in some rows"),
        ([date(2024, 1, 1), date(2024, 1, 2)] * 50, None, "give numbers, texts or booleans"),
    ],
)
def test_a_label_that_cannot_be_told_is_asked_for(values, asked, words):
    """Few whole numbers, one value, none, words without end and dates end with what to do; nothing is guessed."""
    with pytest.raises(DataError, match=words):
        labels.guess(pl.Series("y", values), asked)


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        ({}, {"label": "churn"}, "did you mean 'churned'"),
        ({}, {"time": "age"}, "not all times of one format"),
        ({"when": [datetime(2024, 1, 1)] * 1_499 + [None]}, {"id": "plan"}, "rows share their plan"),
        ({"when": ["1/2/2024", "3/4/2024", "5/6/2024"] * 500}, {"time": "when"}, "could be 2024-01-02 or 2024-02-01"),
        ({}, {"label": "age", "time": "age"}, "named twice"),
    ],
)
def test_what_a_column_was_named_for_it_must_be(change, asked, words):
    """A name that is not there, a time that is none or two, an id that several rows share: each is told."""
    given = {"case": "churn", "label": "churned", "time": "at", "id": "key"} | asked
    with pytest.raises((ConfigError, DataError), match=words):
        inspect(customers(**change), Asked(**given))


def test_names_that_no_field_may_have_are_changed():
    """Blanks, reserved words and the label's own name lead to fields of other names, none of them twice."""
    frame = customers(
        **{
            "net income": RNG.uniform(0, 1, 1_500),
            "net-income": RNG.uniform(0, 1, 1_500),
            "score": RNG.uniform(0, 1, 1_500),
        }
    )
    found = inspect(frame, Asked("churn", "churned", "at", "key"))
    assert found.fields.names == ("age", "plan", "net_income", "net_income_2", "score_value")


def test_an_index_without_a_name_is_left_out():
    """The column without a name that pandas writes is no field, and told."""
    found = inspect(customers(**{"": range(1_500)}), Asked("churn", "churned", "at", "key"))
    assert found.fields.names == ("age", "plan")
    assert "pandas" in found.left_out[""]
