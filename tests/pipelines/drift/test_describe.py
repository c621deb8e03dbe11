"""pipelines/drift/why/describe.py: two sides of a feature in its own units, within a bin's width."""

import numpy as np
import polars as pl
import pytest

from pipelines.drift.profile.counts import Column, category_column, number_column
from pipelines.drift.profile.spec import Scale
from pipelines.drift.why.describe import describe
from pipelines.drift_report import CategoryChange


def test_quartiles_are_those_of_the_values():
    """Quartiles read from the counts are within 0.8% of those of the values, in the field's units."""
    values = np.random.default_rng(0).normal(50_000, 9_000, 4_001)
    scale = Scale(loc=30_000.0, scale=1 / 12_000)
    told = describe(
        "salary", number_column(pl.Series(values), scale), number_column(pl.Series(values * 2), scale), scale
    )
    assert told.before == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]), rel=0.008)
    assert told.now == pytest.approx(2 * np.quantile(values, [0.25, 0.5, 0.75]), rel=0.008)


def test_the_value_that_changed_most_is_named():
    """Of a category the value with the largest change of its share is told; undeclared values have no name."""
    words = ("web", "shop")
    before, now = (
        category_column(pl.Series(values), words) for values in (["web"] * 6 + ["shop"] * 4, ["web"] * 5 + ["fax"] * 5)
    )
    told = describe("channel", before, now, None)
    assert told == CategoryChange(feature="channel", value=None, before=0.0, now=0.5)


def test_nothing_is_told_of_nothing():
    """A side without values has no description."""
    empty = Column(np.empty(0, np.int64), np.empty(0, np.int64))
    assert describe("x", empty, number_column(pl.Series([1.0]), Scale(0.0, 1.0)), Scale(0.0, 1.0)) is None
