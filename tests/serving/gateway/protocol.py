"""Rows as inputs of tritonclient, by what a model's metadata says of each: as a tool that knows no field would send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ARRAYS = {"BYTES": np.object_, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
MISSING = {"BYTES": b"", "FP64": np.nan}


def inputs(module: Any, about: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The inputs ``about`` of which the rows have something; ``module`` is tritonclient.http or .grpc."""
    found = []
    for one in about:
        name, datatype = one["name"], one["datatype"]
        if any(name in row for row in rows):
            array = np.array([_element(row.get(name), datatype) for row in rows], ARRAYS[datatype])
            found.append(module.InferInput(name, list(array.shape), datatype))
            found[-1].set_data_from_numpy(array)
    return found


def _element(value: Any, datatype: str) -> Any:
    if value is None:
        return MISSING[datatype]
    return value.encode() if isinstance(value, str) else value
