"""benchmarks/bench/families.py and models.py: who serves without a gate, who is compared, and rows of all kinds."""

import numpy as np
import polars as pl

from benchmarks.bench import rows
from benchmarks.bench.families import at_dates, families
from benchmarks.bench.flights import named
from pipelines.cases import load_fields
from pipelines.derived import deriving
from pipelines.encoding import encode


def done(as_of: str, candidate: str | None) -> dict[str, str | None]:
    """A training as a replay records it."""
    return {"as_of": as_of, "candidate": candidate}


def test_without_a_gate_the_newest_training_serves():
    """A month that had too little to learn from keeps the model before, and counts as no training."""
    trained = [done("a", "1"), done("b", None), done("c", "3"), done("d", "4")]
    found = at_dates("monthly", trained, None)
    assert found.keys == ["1", "1", "3", "4"]
    assert [one["candidate"] for one in found.trainings] == ["1", "3", "4"]


def test_at_given_dates_nothing_else_is_trained():
    """The first model serves until the first of the dates, whatever was trained between."""
    trained = [done("a", "1"), done("b", "2"), done("c", "3"), done("d", "4")]
    assert at_dates("the demo's", trained, {"c"}).keys == ["1", "1", "3", "3"]


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
