"""Slices: the rows of the holdout that share a value of a declared column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


MISSING = "missing"
"""The value of the rows without one, as everywhere that slices are named."""


def slices(frame: pl.DataFrame, columns: tuple[str, ...]) -> dict[str, NDArray[np.bool_]]:
    """A mask ``[n]`` per value of each column, named ``column=value``, columns as declared, values sorted.

    Raises ConfigError naming a column that the frame lacks.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        if column not in frame.columns:
            raise ConfigError(
                f"gate.slices names {column!r}, which is no column: choose from {', '.join(frame.columns)}"
            )
        own = frame[column]
        if own.dtype.is_(pl.Boolean()):
            own = own.cast(pl.String)
        values = own.to_numpy()
        for value in sorted(own.drop_nulls().unique().to_list()):
            masks[f"{column}={value}"] = values == value
        if own.null_count():
            masks[f"{column}={MISSING}"] = own.is_null().to_numpy()
    return masks
