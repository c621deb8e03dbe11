"""A small case that predicts a number, as somebody writes it: how many minutes a trip takes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from tests.shop import REAL

CASE = "trips"
START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = '''"""The fields."""

from pipelines.fields import Categorical, Fields, Number, Numeric

FIELDS = Fields(
    case="trips",
    label="minutes",
    about="How many minutes does the trip take?",
    fields=(Categorical("road", ("town", "country")), Numeric("km", 0, 100), Numeric("rain", 0, 5, integer=True)),
    target=Number("min", 0, 600),
)
'''
SOURCE = '''"""The rows lie in one Parquet file."""

import polars as pl

from pipelines.cases.sources import Source, canonical
from pipelines.cases.trips.schema import FIELDS


def resolve(settings, params):
    """Where the rows are."""
    return Source(name="trips", kind="real", why="a file", notice="none", path=settings.data_dir / "trips.parquet")


def rows(source, window, params):
    """The rows of a window."""
    return canonical(pl.read_parquet(source.path), FIELDS, window, params)
'''
MODEL = '''"""The network of the tabular cases."""

from pipelines.cases.tabular import build

__all__ = ["build"]
'''
NOISE = 3.0
"""Standard deviation of what no field tells, in minutes."""


def write(root: Path) -> Path:
    """The case below ``root``; returns its folder."""
    folder = root / CASE
    folder.mkdir(parents=True)
    params = yaml.safe_load((REAL / "loans" / "params.yaml").read_text())
    params |= {"case": CASE, "period": ["2024-01-01T00:00:00Z", None], "label_delay_days": 1, "replay": None}
    params["schedule"]["live"] = False
    params["dataset"] |= {"window_days": 30, "min_rows": 400, "fallback_rows": 800, "min_holdout": 100}
    params["train"] |= {"epochs": 30, "batch_size": 64, "learning_rate": 0.01}
    params["model"]["dropout"] = 0.0
    params["gate"] |= {"metric": "rmse", "min_lift": 0.05, "slices": ["road"], "min_slice_rows": 50, "draws": 500}
    params["drift"] |= {"min_metric_drop": 2.0, "min_new_labels": [100, 50, 0.1]}
    params["headroom"] = {"price": 1.0}
    del params["source"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "__init__.py").write_text('"""A case."""\n')
    for part, text in (("schema", SCHEMA), ("source", SOURCE), ("model", MODEL)):
        (folder / f"{part}.py").write_text(text)
    return folder


def rows(
    count: int, *, start: datetime = START, per_day: int = 100, seed: int = 0, slower: float = 1.0
) -> pl.DataFrame:
    """Rows with labels a day after their event; ``slower`` times the usual minutes (concept drift)."""
    rng = np.random.default_rng(seed)
    road, km, rain = rng.integers(0, 2, count), rng.uniform(1, 60, count).round(1), rng.integers(0, 6, count)
    minutes = slower * (5 + km * np.where(road == 0, 1.6, 0.8) + 2 * rain) + rng.normal(0, NOISE, count)
    moments = [start + timedelta(seconds=math.floor(86_400 / per_day) * number) for number in range(count)]
    return pl.DataFrame(
        {
            "id": [f"{seed}-{number:05d}" for number in range(count)],
            "event_time": moments,
            "road": [("town", "country")[at] for at in road],
            "km": km,
            "rain": rain.astype(float),
            "minutes": minutes.clip(0, 600),
            "label_time": [moment + timedelta(days=1) for moment in moments],
        },
        schema_overrides={"event_time": pl.Datetime("us", "UTC"), "label_time": pl.Datetime("us", "UTC")},
    )
