"""benchmarks/bench/flights.py: what was known when a model was trained, and what is measured of its answers."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from benchmarks.bench.flights import known, metrics
from pipelines.fields import Fields, Number, Numeric

MINUTES = Fields("delays", (Numeric("hour"),), "delay", target=Number("minutes"))
LATE = Fields("delays", (Numeric("hour"),), "late")
MARCH = datetime(2013, 3, 1, tzinfo=UTC)


def test_a_peer_learns_from_nothing_that_was_not_known():
    """A flight whose truth comes after the first of the month is not learned from, nor one of before the span."""
    hours = [-24 * 60 - 1, -24 * 60, -25, -24, -23, 0]
    departed = pl.Series("event_time", [MARCH + timedelta(hours=hour) for hour in hours]).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"event_time": departed, "label_time": departed + timedelta(days=1), "late": [1] * len(hours)})
    found = known(rows, LATE, MARCH, timedelta(days=60))
    assert [(moment - MARCH) / timedelta(hours=1) for moment in found["event_time"]] == [-24 * 60, -25, -24]


def test_a_number_is_measured_where_there_is_one():
    """RMSE and MAE are in minutes, and a flight that never arrived counts in neither."""
    found = metrics(MINUTES, pl.Series([10.0, None, -5.0]), np.array([13.0, 1e6, -1.0]))
    assert found == pytest.approx({"rmse": 12.5**0.5, "mae": 3.5})


def test_a_binary_label_is_measured_by_rank_and_by_probability():
    """A perfect order has an AUC of 1, and half-hearted probabilities still cost."""
    found = metrics(LATE, pl.Series([0, 1], dtype=pl.Int8), np.array([0.5, 0.75]))
    assert found == pytest.approx({"roc_auc": 1.0, "log_loss": (np.log(2) - np.log(0.75)) / 2})
