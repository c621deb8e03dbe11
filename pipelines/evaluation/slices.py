"""Slices: the rows of the holdout that share a value of a declared column, or a bin of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipelines.errors import ConfigError
from pipelines.measures import binned
from pipelines.params import Bins, SliceBy

if TYPE_CHECKING:
    from numpy.typing import NDArray


MISSING = "missing"
"""The value of the rows without one, as everywhere that slices are named."""


def slices(frame: pl.DataFrame, columns: Sequence[SliceBy]) -> dict[str, NDArray[np.bool_]]:
    """A mask ``[n]`` per value of each column, named ``column=value``, columns as declared, values sorted.

    Of a column with bins a mask per bin that has a row, from below. Raises ConfigError naming a column that the frame
    lacks, or a number that is not whole and has no bins.
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
        values = own.to_numpy()
        for value in sorted(own.drop_nulls().unique().to_list()):
            masks[f"{name}={value}"] = values == value
        if own.null_count():
            masks[f"{name}={MISSING}"] = own.is_null().to_numpy()
    return masks
