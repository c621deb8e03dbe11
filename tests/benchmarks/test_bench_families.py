"""benchmarks/bench/families.py and models.py: who serves without a gate, who is compared, and rows of all kinds."""

import numpy as np
import polars as pl

from benchmarks.bench import rows
from benchmarks.bench.families import families, in_turn
from benchmarks.bench.flights import named
from pipelines.cases import load_fields
from pipelines.derived import deriving
from pipelines.encoding import encode


def test_without_a_gate_the_newest_training_serves():
    """Where nothing was trained the model before goes on, and counts once."""
    first, second = ({"candidate": name, "seconds": 1.0} for name in "ab")
    found = in_turn("at dates", [first, None, second, None])
    assert found.keys == ["a", "a", "b", "b"]
    assert found.trainings == [first, second]


def test_four_families_are_compared_on_bank():
    """What ships comes first, and no two have one name."""
    names = [named(params) for params in families()]
    assert sorted(names) == sorted({"network", "LightGBM", "XGBoost", "logistic regression"})


def test_rows_of_the_models_bench_have_holes_everywhere():
    """Every field that may be missing is so somewhere, and derived features are computed of what is there."""
    fields = rows.with_derived(rows.wider(rows.opened(load_fields("bank"))))
    generator = np.random.default_rng(0)
    frame = pl.DataFrame([rows.drawn_row(fields, generator) for _ in range(300)], infer_schema_length=None)
    assert all(frame[field.name].null_count() for field in fields.fields if getattr(field, "missing", False))
    tensors = encode(fields, frame.select(fields.reads).to_dict(as_series=False), derive=deriving(fields))
    assert np.isnan(tensors["numeric"]).any(axis=0).sum() == len(fields.numeric)
