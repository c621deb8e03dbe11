"""pipelines/data/rows_hash.py: the hash of rows is made of what its form says, and of nothing else."""

import hashlib
import json
import struct
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from pipelines.data.rows_hash import rows_sha256

MOMENT = pl.Datetime("us", "UTC")
NAN = float("nan")
COLUMNS = {
    "id": (pl.String(), ["a", "", "ü\u00df", "longer than twelve bytes"]),
    "event_time": (MOMENT, [datetime(2024, 1, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)] * 2),
    "word": (pl.String(), [None, "", "x", None]),
    "number": (pl.Float64(), [1.5, None, NAN, float("-inf")]),
    "flag": (pl.Boolean(), [True, None, False, True]),
    "moment": (MOMENT, [None] * 4),
    "vector": (pl.List(pl.Float64()), [[1.0, None], None, [], [NAN]]),
    "label": (pl.Int8(), [1, 0, None, -1]),
    "version": (pl.Int64(), [1, 2, 3, 4]),
}
ROWS = pl.DataFrame({name: pl.Series(values, dtype=kind) for name, (kind, values) in COLUMNS.items()})
SHA256 = "e20b0c8fcea68941f59be53c13682bf0e98bd5a1053999e1559034b97ddb3c40"
CODES = {"Float64": "d", "Int8": "b", "Int64": "q", "Datetime us UTC": "q"}


def bits(marks: list[bool]) -> bytes:
    """Eight marks a byte, the first one lowest."""
    return bytes(
        sum(1 << place for place, mark in enumerate(marks[start : start + 8]) if mark)
        for start in range(0, len(marks), 8)
    )


def form(name: str, kind: str, values: list[Any]) -> bytes:
    """A column in the form that is hashed, in plain Python."""
    missing = [value is None for value in values]
    found = json.dumps([name, kind, len(values), sum(missing)]).encode() + b"\n"
    if any(missing):
        found += bits(missing)
    if kind.startswith("List "):
        lists = [value or [] for value in values]
        inner = [value for own in lists for value in own]
        lengths = struct.pack(f"<{len(lists)}I", *map(len, lists))
        return found + lengths + form(name, kind.removeprefix("List "), inner)
    if kind == "String":
        texts = [(value or "").encode() for value in values]
        return found + struct.pack(f"<{len(texts)}I", *map(len, texts)) + b"".join(texts)
    if kind == "Boolean":
        return found + bits([bool(value) for value in values])
    if kind.startswith("Datetime"):
        values = [value and (value - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6 for value in values]
        values = [value and int(value) for value in values]
    return found + struct.pack(f"<{len(values)}{CODES[kind]}", *(value or 0 for value in values))


def test_the_hash_is_of_the_form_that_is_written_down():
    """Plain Python makes the same bytes of every type of canonical rows, and the hash is the one of every release."""
    kinds = {MOMENT: "Datetime us UTC", pl.List(pl.Float64()): "List Float64"}
    expected = b"".join(
        form(name, kinds.get(kind, str(kind)), ROWS[name].to_list()) for name, (kind, _) in COLUMNS.items()
    )
    assert rows_sha256(ROWS) == hashlib.sha256(expected).hexdigest() == SHA256


def test_how_rows_lie_in_memory_is_not_seen():
    """Chunks, slices of longer columns, what is under a missing value, and the bits of a NaN give the same hash."""
    twice = pl.concat([ROWS, ROWS])
    assert rows_sha256(twice.slice(4, 4)) == rows_sha256(ROWS)
    assert rows_sha256(pl.concat([ROWS.head(1), ROWS.tail(3)], rechunk=False)) == rows_sha256(ROWS)
    assert rows_sha256(pl.concat([ROWS, ROWS.clear()], rechunk=True)) == rows_sha256(ROWS)
    raw = pl.Series([struct.unpack("<q", struct.pack("<d", 7.0))[0], 0x7FF8000000000001, -(1 << 51)]).reinterpret(
        signed=False
    )
    other = pl.DataFrame({"x": pl.Series(raw.to_numpy().view("f8"))})
    assert rows_sha256(other) == rows_sha256(pl.DataFrame({"x": [7.0, NAN, NAN]}))
    hidden = pl.DataFrame({"x": [5.0, 1.0]}).select(pl.when(pl.col("x") < 2).then("x"))
    assert rows_sha256(hidden) == rows_sha256(pl.DataFrame({"x": [None, 1.0]}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": ["ab", "c"]}, {"x": ["a", "bc"]}),
        ({"x": ["", "a"]}, {"x": [None, "a"]}),
        ({"x": [0.0, 1.0]}, {"x": [None, 1.0]}),
        ({"x": [0.0, 1.0]}, {"x": [-0.0, 1.0]}),
        ({"x": [NAN, 1.0]}, {"x": [None, 1.0]}),
        ({"x": [NAN, 1.0]}, {"x": [float("inf"), 1.0]}),
        ({"x": [1, 2]}, {"x": [2, 1]}),
        ({"x": [1, 2]}, {"x": [1.0, 2.0]}),
        ({"x": [1, 2]}, {"y": [1, 2]}),
        ({"x": [1], "y": [2]}, {"y": [2], "x": [1]}),
        ({"x": [True, False]}, {"x": [True, False, False]}),
        ({"x": [[1.0], [2.0]]}, {"x": [[1.0, 2.0], []]}),
        ({"x": [[], [2.0]]}, {"x": [None, [2.0]]}),
        ({"x": [None, [2.0]]}, {"x": [[None], [2.0]]}),
    ],
)
def test_other_rows_have_another_hash(one, other):
    """Values, their borders, what is missing, types, names and the orders of rows and columns are all told apart."""
    assert rows_sha256(pl.DataFrame(one)) != rows_sha256(pl.DataFrame(other))


def test_a_type_without_a_form_is_refused():
    """A column that canonical rows never have is an error and not left out of the hash."""
    with pytest.raises(TypeError, match="x holds Categorical"):
        rows_sha256(pl.DataFrame({"x": pl.Series(["a"], dtype=pl.Categorical)}))
