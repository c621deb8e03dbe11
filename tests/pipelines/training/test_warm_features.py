"""A warm start goes on from weights only where their inputs mean the same."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest
from torch import nn

from pipelines.derived import with_formulas
from pipelines.fields import Fields, Numeric
from pipelines.training import candidate
from pipelines.training.warm_start import WarmStart
from pipelines.training.weights import save_weights

PLAIN = Fields("shop", (Numeric("a", 0, 1), Numeric("b", 0, 1)), label="sold")
DECLARED = dataclasses.replace(PLAIN, derived=(Numeric("ratio", missing=True),))
RATIO = with_formulas(DECLARED, {"ratio": pl.col("a") / pl.col("b")})
OTHER = with_formulas(DECLARED, {"ratio": pl.col("b") / pl.col("a")})


@pytest.mark.parametrize(
    ("learned", "now", "goes_on"), [(PLAIN, PLAIN, True), (RATIO, RATIO, True), (OTHER, RATIO, False)]
)
def test_weights_are_taken_where_the_features_are_the_same(tmp_path, learned, now, goes_on):
    """A champion whose features were computed by other formulas is no start, though its weights would fit."""
    save_weights(nn.Linear(3, 1), tmp_path / "weights.pt")
    told = learned.features_hash if learned.derived else ""
    start = WarmStart("key", tmp_path / "weights.pt", {}, told)
    network = candidate.Network(lambda: nn.Linear(3, 1), dict)
    task = candidate.Task(None, None, now, network, tmp_path, tmp_path, start)
    assert (candidate._warm_start(task) is start) == goes_on


def test_a_champion_without_weights_is_no_start(tmp_path):
    """An estimator leaves none: a network after it starts anew."""
    start = WarmStart("key", tmp_path / "weights.pt", {})
    network = candidate.Network(lambda: nn.Linear(2, 1), dict)
    assert candidate._warm_start(candidate.Task(None, None, PLAIN, network, tmp_path, tmp_path, start)) is None
