"""Slices: the rows of the holdout that share a value of a declared column, or a bin of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipelines.errors import ConfigError
from pipelines.measures import MISSING, MOST_SLICES, binned
from pipelines.params import Bins, SliceBy

if TYPE_CHECKING:
    from numpy.typing import NDArray


def slices(frame: pl.DataFrame, columns: Sequence[SliceBy]) -> dict[str, NDArray[np.bool_]]:
    """A mask ``[n]`` per value of each column, named ``column=value``, columns as declared, values sorted.

    Rows without a value are ``column=missing``, and so are those whose value is that word. Of a column with more than
    ``MOST_SLICES`` values those with most rows have a mask. Of a column with bins a mask per bin that has a row, from
    below. Raises ConfigError naming a column that the frame lacks, or a number that is not whole and has no bins.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        name = column.field if isinstance(column, Bins) else column
        if name not in frame.columns:
            raise ConfigError(f"gate.slices names {name!r}, which is no column: choose from {', '.join(frame.columns)}")
        if isinstance(column, Bins):
            words = binned(frame[name].cast(pl.Float64).to_numpy(), column.bins)
            order = binned(np.array([-np.inf, *column.bins, np.nan]), column.bins)
            masks |= {f"{name}={word}": own for word in order if (own := words == word).any()}
            continue
        known = frame[name].drop_nulls().to_numpy()
        if frame[name].dtype.is_float() and (known != np.floor(known)).any():
            raise ConfigError(
                f"gate.slices cuts {name!r} by its values, which are no whole numbers, so that hardly two rows share "
                f"one: give bins, as in {{field: {name}, bins: [30, 50]}}"
            )
        own = frame[name]
        if own.dtype.is_(pl.Boolean()):
            own = own.cast(pl.String)
        for value, rows in _rows_of(own):
            masks[f"{name}={value}"] = mask = np.zeros(own.len(), bool)
            mask[rows] = True
        if own.null_count():
            word = f"{name}={MISSING}"
            masks[word] = own.is_null().to_numpy() | masks.get(word, False)
    return masks


def _rows_of(values: pl.Series) -> list[tuple[Any, NDArray[Any]]]:
    """The commonest values, sorted, with the positions of their rows."""
    grouped = pl.DataFrame({"value": values}).with_row_index("row").drop_nulls().group_by("value").agg("row")
    found = zip(grouped["value"].to_list(), (rows.to_numpy() for rows in grouped["row"]), strict=True)
    commonest = sorted(found, key=lambda one: (-len(one[1]), one[0]))[:MOST_SLICES]
    return sorted(commonest, key=lambda one: one[0])
