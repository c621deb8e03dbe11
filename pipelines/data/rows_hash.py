"""The hash of rows by what their columns hold, in a form that no file format, library or machine decides on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray


def rows_sha256(frame: pl.DataFrame) -> str:
    """sha256 (hex) of rows in their order, columns and types.

    Of each column in turn: its name and type, how many rows it has and how many values are missing, which ones those
    are (a bit each, the first row's lowest) if there are any, and the values. Numbers and times are little-endian, 0
    where one is missing, and all NaN are one; booleans are a bit each. Texts are their lengths in bytes (uint32), then
    their UTF-8. Lists are their lengths (uint32), then the column of what they hold. Raises TypeError for other types:
    canonical rows have none.
    """
    found = hashlib.sha256()
    for column in frame.iter_columns():
        for part in _parts(column):
            found.update(part)
    return found.hexdigest()


def _parts(values: pl.Series) -> Iterator[Any]:
    """What is hashed of a column, as objects with a buffer."""
    kind = values.dtype
    missing = values.null_count()
    yield f"{json.dumps([values.name, _kind(kind), values.len(), missing])}\n".encode()
    if missing:
        yield _bits(values.is_null())
    if isinstance(kind, pl.List):
        lengths = values.list.len().fill_null(0)
        yield _little(lengths.cast(pl.UInt32).to_numpy())
        yield from _parts(values.filter(lengths > 0).explode())
    elif kind == pl.String:
        yield from _texts(values.fill_null("") if missing else values)
    elif kind == pl.Boolean:
        yield _bits(values.fill_null(value=False) if missing else values)
    elif kind.is_integer() or kind.is_float() or isinstance(kind, pl.Datetime):
        numbers = values.to_physical()
        yield _little((numbers.fill_null(0) if missing else numbers).to_numpy())
    else:
        raise TypeError(f"{values.name} holds {kind}, which has no canonical form")


def _kind(kind: pl.DataType) -> str:
    if isinstance(kind, pl.Datetime):
        return f"Datetime {kind.time_unit} {kind.time_zone}"
    if isinstance(kind, pl.List):
        return f"List {_kind(kind.inner)}"  # type: ignore[arg-type] # the types of canonical rows are whole ones
    return str(kind)


def _bits(marks: pl.Series) -> Any:
    return np.packbits(marks.to_numpy(), bitorder="little")


def _little(numbers: NDArray[Any]) -> Any:
    if numbers.dtype.kind == "f" and (none := np.isnan(numbers)).any():
        numbers = np.where(none, np.nan, numbers)  # else of any bits
    return np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))


def _texts(texts: pl.Series) -> Iterator[Any]:
    """Of texts, none of which is missing."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    if not len(array):
        return
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    yield _little(np.diff(places).astype(np.uint32))
    if data is not None:
        yield memoryview(data)[places[0] : places[-1]]
