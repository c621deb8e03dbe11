"""Slices: the rows of the holdout that share a value of a declared column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray


MISSING = "(missing)"
"""The name of the rows without a value."""


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
        values = frame[column].to_numpy()
        for value in sorted(frame[column].drop_nulls().unique().to_list()):
            masks[f"{column}={value}"] = values == value
        if frame[column].null_count():
            masks[f"{column}={MISSING}"] = frame[column].is_null().to_numpy()
    return masks
