"""A moment in a row: what it is read as, what is no moment, and that one instant is one value."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest

from pipelines.cases.receiving import receive
from pipelines.data.contract import split
from pipelines.encoding import encode, unfold, unfolded
from pipelines.errors import ConfigError, DataError
from pipelines.export.scoring import score
from pipelines.fields import EARLIEST, LATEST, Moment, Numeric, from_json, to_json
from pipelines.params_file import load_params
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from tests.conformance.table import WINDOW, bundle_of, declare, delivered, installed, own_answers

DUE = Moment("due", missing=True)
FIELDS = declare(DUE)
TIMES = [
    datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
    datetime(2024, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
    datetime(1969, 12, 31, 23, 59, 59, 1, UTC),
    EARLIEST,
    LATEST - timedelta(microseconds=1),
    None,
]
EVENT = datetime(2024, 3, 1, 12, 0, 0, 7, UTC)


def test_single_rows_and_frames_are_read_alike():
    """The parts of a moment are the same to the bit for a row and in a frame, whatever zone and sign."""
    columns = {"due": TIMES, "event_time": [EVENT] * len(TIMES)}
    alone = unfold(FIELDS, columns)
    utc = [None if time is None else time.astimezone(UTC) for time in TIMES]
    frame = unfolded(pl.DataFrame({"due": utc, "event_time": columns["event_time"]}), FIELDS)
    for column in DUE.columns:
        assert frame[column.name].to_list() == alone[column.name]
    # February 29 in UTC, half past eleven at night.
    assert [alone[f"due.{part}"][1] for part in ("hour", "weekday", "month")] == ["23", "thu", "2"]
    assert alone["due.age"][1] == pytest.approx(0.520833, abs=1e-6)
    assert alone["due.age"][4] < 0


def test_a_time_that_is_text_in_the_log_is_read():
    """Rows of the log, whose times are text, have the parts that the canonical rows have."""
    frame = pl.DataFrame({"due": ["2024-03-01T01:30:00+02:00", "soon"], "event_time": [EVENT] * 2})
    assert unfolded(frame, FIELDS)["due.hour"].to_list() == ["23", None]


def test_what_is_no_moment_is_refused_by_the_gateway():
    """A time without a zone, no time, and one beyond the years that rows have are refused by name; null is taken."""
    shape = row_shape(FIELDS, 10)
    for sent in ("2024-03-01T00:00:00", "soon", 17, "0001-01-01T00:00:00+02:00", "2200-01-01T00:00:00Z"):
        with pytest.raises(Refused) as refused:
            read(shape, json.dumps({"rows": [{"due": sent}]}).encode())
        assert (refused.value.reason, refused.value.field) in {("time", "due"), ("type", "due")}
    assert read(shape, b'{"rows": [{"due": null}]}')[0].due is None


def test_one_instant_is_one_value():
    """A time is kept in UTC: the same instant from another zone is the same row."""
    rows = [{"due": "2024-03-01T01:30:00+02:00"}, {"due": "2024-02-29T23:30:00Z"}]
    one, other = read(row_shape(FIELDS, 10), json.dumps({"rows": rows}).encode())
    assert (one.due, one.due.tzinfo) == (other.due, UTC)


def test_what_a_source_delivers_is_read_or_set_aside(tmp_path):
    """Times come with a zone or as text; no time and a year beyond the limits are set aside."""
    with installed(tmp_path, FIELDS):
        rows = delivered(FIELDS, rows=3).with_columns(due=pl.Series(["2024-03-01T01:30:00+02:00", "soon", None]))
        received = receive(rows, FIELDS, WINDOW, load_params(FIELDS.case))
        assert received.rows["due"].to_list() == [datetime(2024, 2, 29, 23, 30, tzinfo=UTC), None]
        assert received.refused["reasons"].to_list() == ["due: cannot be read"]
        beyond = rows.head(1).with_columns(due=pl.lit(datetime(2200, 1, 1, tzinfo=UTC)))
        good, bad = split(receive(beyond, FIELDS, WINDOW, load_params(FIELDS.case)).rows, FIELDS)
        assert (good.height, bad["reasons"].to_list()) == (0, ["due: not between 1900 and 2200"])
        with pytest.raises(DataError, match="time zone"):
            receive(rows.with_columns(due=datetime(2024, 3, 1)), FIELDS, WINDOW, load_params(FIELDS.case))


def test_only_its_parts_are_encoded():
    """A moment is given to the model by the parts that are declared, and needs an event time only for its age."""
    hour = declare(Moment("due", ("hour", "month")))
    tensors = encode(hour, {"due": TIMES[:2]})
    assert (tensors["categorical"].tolist(), tensors["numeric"].shape) == ([[23, 1], [23, 1]], (2, 0))
    with pytest.raises(DataError, match="event_time"):
        encode(declare(Moment("due", ("age",))), {"due": TIMES[:2]})
    with pytest.raises(DataError, match="no time"):
        encode(hour, {"due": ["2024-03-01"]})


@pytest.mark.parametrize("parts", [(), ["hour"], ("minute",), ("hour", "hour")])
def test_parts_that_cannot_be_are_refused(parts):
    """A declaration names at least one part that there is, each once."""
    with pytest.raises(ConfigError, match="part"):
        declare(Moment("due", parts))


def test_a_declaration_comes_back_as_it_was():
    """A bundle's declaration of a moment is equal to the original, and its parts are part of the hash."""
    assert from_json(json.loads(json.dumps(to_json(FIELDS)))) == FIELDS
    assert FIELDS.hash != declare(Moment("due", ("hour",), missing=True)).hash


def test_a_holdout_with_moments_is_scored(tmp_path):
    """A bundle scores rows by the age of a moment, which is read beside the event time, as the model itself does."""
    fields = declare(DUE, Numeric("price"))
    with installed(tmp_path, fields):
        rows = receive(delivered(fields), fields, WINDOW, load_params("shop")).rows
    trained = bundle_of(fields, rows, tmp_path / "bundle")
    expected = own_answers(trained, fields, rows, tmp_path / "bundle")[:, 0]
    assert np.abs(score(tmp_path / "bundle", rows, fields) - expected).max() < 1e-5
