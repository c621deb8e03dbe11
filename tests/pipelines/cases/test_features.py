"""What every case's features.py has to hold."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from pipelines.case_files import case_names
from pipelines.cases import expressions, load_fields
from pipelines.derived import derive, from_json, to_json
from pipelines.fields import FLOAT32_MAX, Categorical, Fields, Flag, Numeric, frame_schema

ROWS = 150


def drawn(fields: Fields) -> pl.DataFrame:
    """Rows with all that the declaration takes: whole numbers and others, bounds, holes and undeclared values."""
    rng = np.random.default_rng(0)
    kinds = frame_schema(fields)
    columns = {field.name: pl.Series(_values(field, rng), dtype=kinds[field.name]) for field in fields.fields}
    return pl.DataFrame(columns)


def _values(field, rng):
    if isinstance(field, Numeric):
        low, high = (-1e6 if field.low is None else field.low), (1e6 if field.high is None else field.high)
        values = [low, high, *rng.uniform(low, high, ROWS - 2)]
        # Whole numbers are where floors and buckets have their edges.
        values = [float(round(v)) if field.integer or position % 2 else v for position, v in enumerate(values)]
    elif isinstance(field, Categorical):
        known = [*field.values, *(["undeclared"] if field.other else [])]
        values = [known[position] for position in rng.integers(0, len(known), ROWS)]
    elif isinstance(field, Flag):
        values = (rng.random(ROWS) < 0.5).tolist()
    else:
        values = ["text"] * ROWS
    holes = rng.random(ROWS) < (0.2 if field.missing else 0.0)
    return [None if hole else value for value, hole in zip(values, holes, strict=True)]


@pytest.mark.parametrize("case", case_names())
def test_a_row_has_the_features_that_the_expressions_say(case):
    """Row by row, what the model is given is what polars makes of the case's own expressions, and bundles carry it."""
    fields = load_fields(case)
    if not fields.derived:
        assert not fields.formulas
        assert fields.features_hash == fields.hash
        return
    assert from_json(fields, json.loads(json.dumps(to_json(fields)))) == fields
    frame = drawn(fields)
    found = derive(fields, frame.to_dict(as_series=False))
    written = expressions(case)
    for position in range(ROWS):
        row = frame[position].select(pl.as_struct(expression).alias(name) for name, expression in written.items())
        for field in fields.derived:
            (wanted,), own = row[field.name][0].values(), found[field.name][position]
            if isinstance(field, Numeric) and wanted is not None:
                wanted = float(wanted) if abs(wanted) <= FLOAT32_MAX else None
            if isinstance(wanted, float) and isinstance(own, float):
                assert math.isclose(own, wanted, rel_tol=1e-15), (field.name, frame[position])
            else:
                assert own == wanted, (field.name, frame[position])
