"""pipelines/evaluation/baseline.py: what a first champion has to beat."""

import numpy as np
import polars as pl
import pytest

from pipelines.evaluation import baseline
from pipelines.fields import Binary, Categorical, Classes, Fields, Flag, Number
from pipelines.gating.paired import paired
from pipelines.params_file import load_params

GATE = load_params("bank").gate
GENERATOR = np.random.default_rng(0)
CARRIERS = ["AA"] * 200 + ["B6"] * 100 + [None] * 50 + ["HA"] * 5
"""Training rows of each value: one is missing, one has too few."""
SKEWED = GENERATOR.exponential(10, len(CARRIERS)) + np.where(np.array(CARRIERS) == "AA", 20.0, 0.0)
ASKED = pl.DataFrame({"carrier": ["AA", "B6", None, "HA", "VX"]})


def of(target):
    """A declaration with a category, a flag and this target."""
    fields = (Categorical("carrier", ("AA", "B6"), missing=True, other=True), Flag("night"))
    return Fields(case="small", label="y", fields=fields, target=target)


def answered(target, labels, rate, **gate):
    """The baseline's answers to the rows asked, and what it is called."""
    fields, own = of(target), GATE.model_copy(update=gate)
    train = pl.DataFrame({"carrier": CARRIERS, "y": labels})
    overall = baseline.constant(train, rate, fields, own)
    return baseline.answers(train, ASKED, overall, fields, own), baseline.told(fields, own)


@pytest.mark.parametrize(
    ("gate", "expected", "words"),
    [
        ({"metric": "rmse"}, SKEWED.mean(), "mean"),
        ({"metric": "mae"}, np.median(SKEWED), "median"),
        ({"metric": "pinball", "quantile": 0.9}, np.quantile(SKEWED, 0.9), "0.9 quantile"),
        ({"metric": "pinball", "quantile": 0.5}, np.median(SKEWED), "median"),
    ],
)
def test_without_a_field_it_is_the_best_constant_of_the_metric(gate, expected, words):
    """Every row has one answer; on the training rows no other constant has a lower loss under the metric."""
    found, told = answered(Number("min"), SKEWED, SKEWED.mean(), **gate)
    assert (told, found.tolist()) == (words, [pytest.approx(expected)] * 5)
    if gate["metric"] == "rmse":
        return
    own = GATE.model_copy(update=gate)
    best = np.full(len(SKEWED), found[0])
    for other in np.quantile(SKEWED, [0.05, 0.3, 0.49, 0.51, 0.7, 0.85, 0.95]):
        assert paired(gate["metric"], SKEWED, best, np.full(len(SKEWED), other), own).lift <= 1e-9


@pytest.mark.parametrize(("metric", "constant"), [("rmse", np.mean), ("mae", np.median)])
def test_with_a_field_each_value_has_its_own(metric, constant):
    """A row has the constant of its value, null being one; values that are rare or unseen have that of all rows."""
    found, told = answered(Number("min"), SKEWED, SKEWED.mean(), metric=metric, baseline="carrier")
    groups = [SKEWED[:200], SKEWED[200:300], SKEWED[300:350], SKEWED, SKEWED]
    assert found.tolist() == pytest.approx([constant(group) for group in groups])
    assert told == {"rmse": "mean by carrier", "mae": "median by carrier"}[metric]


def test_rates_of_a_value_leave_nothing_impossible():
    """A value whose training rows are all negative is answered by a little more than 0: one row of the overall rate."""
    labels = np.array([0] * 200 + [1] * 155, np.int8)
    found, told = answered(Binary(), labels, labels.mean(), metric="log_loss", baseline="carrier")
    rate = labels.mean()
    assert told == "base rate by carrier"
    assert found.tolist() == pytest.approx([rate / 201, (100 + rate) / 101, (50 + rate) / 51, rate, rate])


def test_with_classes_each_value_has_a_share_of_each():
    """The shares of a value add up to one, and a class that it never had has a share."""
    labels = np.array([0] * 200 + [1] * 100 + [0, 1] * 25 + [1] * 5, np.int8)
    rate = [0.7, 0.2, 0.1]
    found, _ = answered(Classes(("a", "b", "c")), labels, rate, metric="log_loss", baseline="carrier")
    assert found.shape == (5, 3)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[0] == pytest.approx([200.7 / 201, 0.2 / 201, 0.1 / 201])
    assert found[4] == pytest.approx(rate)


def test_a_flag_is_a_field_like_another():
    """True and false have a rate each."""
    fields, own = of(Binary()), GATE.model_copy(update={"baseline": "night"})
    train = pl.DataFrame({"night": [True, False] * 50, "y": np.array([1, 0] * 50, np.int8)})
    found = baseline.answers(train, pl.DataFrame({"night": [False, True]}), 0.5, fields, own)
    assert found.tolist() == pytest.approx([0.5 / 51, 50.5 / 51])


def test_no_rows_have_no_answers():
    """An empty holdout is no mistake."""
    fields, own = of(Number("min")), GATE.model_copy(update={"metric": "mae", "baseline": "carrier"})
    train = pl.DataFrame({"carrier": CARRIERS, "y": SKEWED})
    assert baseline.answers(train, ASKED.head(0), 1.0, fields, own).shape == (0,)
