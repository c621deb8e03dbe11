"""pipelines/drift/labels/sequential.py: what labels prove, and how rarely they do so by chance."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from pipelines.drift.labels import arrived, sequential
from pipelines.fields import Binary, Classes, Number
from pipelines.measures import design_effect
from pipelines.params_file import load_params

PARAMS = load_params("loans").drift


@pytest.mark.parametrize(("rows", "rate"), [(1, 0.1), (50, 0.03), (400, 0.3)])
def test_the_e_value_expects_at_most_one(rows: int, rate: float):
    """Over all outcomes of a batch that errs at the baseline the e-value's mean is 1; at a lower rate it is less."""
    k = np.arange(rows + 1)
    e = np.array([math.exp(sequential.log_e_value(int(errors), rows, rate)) for errors in k])
    assert (e * scipy_stats.binom.pmf(k, rows, rate)).sum() == pytest.approx(1.0, rel=1e-6)
    assert (e * scipy_stats.binom.pmf(k, rows, rate / 2)).sum() < 1.0


def test_the_cusum_is_late_for_nothing_and_quiet_otherwise():
    """In 400 runs of 500 windows at the baseline about 500 / 1e4 of the runs alarm at most.

    Ten points more errors alarm within two windows.
    """
    rng = np.random.default_rng(0)
    threshold = math.log(1e4)
    alarms = 0
    delays = []
    for _ in range(400):
        log_e = 0.0
        for errors in rng.binomial(200, 0.1, 500):
            log_e = sequential.grown(log_e, sequential.log_e_value(int(errors), 200, 0.1))
            if log_e >= threshold:
                alarms += 1
                break
        log_e = 0.0
        delay = 0
        while log_e < threshold:
            log_e = sequential.grown(log_e, sequential.log_e_value(int(rng.binomial(200, 0.2)), 200, 0.1))
            delay = delay + 1
        delays.append(delay)
    assert alarms <= 400 * 500 / 1e4
    assert np.median(delays) <= 2


def test_no_labels_change_nothing():
    """A window without labels leaves the process where it is, and it never leaves the range of a float."""
    assert sequential.grown(3.0, sequential.log_e_value(0, 0, 0.1)) == 3.0
    assert sequential.grown(600.0, sequential.log_e_value(100_000, 100_000, 0.01)) == sequential.MAX_LOG_E


@pytest.mark.parametrize("target", [Binary(), Classes(("a", "b", "c")), Number("min")])
def test_labels_of_every_target_bring_their_own_evidence(target):
    """The e-value counts rows of one day as alike, the drop is of the target's loss, and few labels have none."""
    rng = np.random.default_rng(5)
    wrong = np.repeat(rng.random(20) < 0.3, 20)
    start = datetime(2020, 1, 1, tzinfo=UTC)
    times = [start + timedelta(hours=24 * (row // 20) + row % 20) for row in range(400)]
    rows = pl.DataFrame({"event_time": times, "version": 1, "label": 1, "score": np.where(wrong, 0.2, 0.9)})
    rows = rows.with_columns(prediction=pl.Series(np.where(wrong, 0, 1)))
    if isinstance(target, Classes):
        rows = rows.with_columns(scores=pl.Series([[0.7, 0.2, 0.1] if own else [0.1, 0.8, 0.1] for own in wrong]))
    own = {"error_rate": 0.1, "loss": 0.1, "loss_se": 0.01, "large": 0.5, "cap": 0.64, "capped_rate": 0.1}
    found = arrived.judge(rows, 1, own, PARAMS.model_copy(update={"min_rows": 400}), target)
    shares = wrong.astype(np.float64)
    if isinstance(target, Number):
        shares = np.where(wrong, 1.0, 0.01 / 0.64)
    spread = design_effect(shares, np.arange(400) // 20)
    assert spread > 10
    assert found.log_e == pytest.approx(sequential.log_e_of_shares(shares, 0.1) / spread)
    assert (found.rows, found.errors, found.baseline) == (400, wrong.sum(), 0.1)
    assert found.loss == ("squared error" if isinstance(target, Number) else "log-loss")
    assert found.drop is not None
    assert found.drop.low < found.drop.value < found.drop.high
    few = arrived.judge(rows, 1, own, PARAMS.model_copy(update={"min_rows": 401}), target)
    assert (few.drop, few.log_e) == (None, found.log_e)


def test_the_baseline_is_an_upper_bound():
    """The baseline is scipy's exact upper bound of the holdout's error rate, and 1 where everything was wrong."""
    expected = (
        scipy_stats.binomtest(30, 1000).proportion_ci(1 - 2 * (1 - sequential.BASELINE_CONFIDENCE), method="exact").high
    )
    assert sequential.baseline_rate(30, 1000) == pytest.approx(expected)
    assert sequential.baseline_rate(0, 0) == 1.0


def test_the_drop_covers_the_truth():
    """The interval holds the true difference about as often as it says.

    It does so, too, when rows of a day rise and fall together.
    """
    rng = np.random.default_rng(1)
    days = np.repeat(np.arange(20), 50)
    hits = {"rows": 0, "days": 0}
    for _ in range(400):
        common = rng.normal(0, 0.3, 20)[days]
        for kind, losses, at in (
            ("rows", rng.exponential(0.5, 1000), np.zeros(1000, np.int64)),
            ("days", rng.exponential(0.5, 1000) + common, days),
        ):
            drop = sequential.metric_drop(losses, at, 0.3, 0.0, 0.95)
            hits[kind] += drop.low <= 0.2 <= drop.high
    assert all(0.91 * 400 <= hit <= 0.99 * 400 for hit in hits.values()), hits


def test_one_row_proves_nothing():
    """The interval of a single row is as wide as can be."""
    drop = sequential.metric_drop(np.array([9.0]), np.array([0]), 0.3, 0.01, 0.99)
    assert drop.low < 0 < drop.high


def test_days_that_are_alike_are_no_alarm():
    """Errors that come in whole sessions, at the rate of the holdout, are none, though single rows would say so."""
    rng, alarms, rowwise = np.random.default_rng(4), 0, 0
    for _ in range(40):
        grown = rows_alone = 0.0
        for _ in range(30):
            owner = np.repeat(np.arange(40), 5)
            wrong = (rng.random(40) < 0.2)[owner].astype(np.float64)
            spread = design_effect(wrong, np.sort(rng.integers(0, 30, 40))[owner])
            batch = sequential.log_e_value(int(wrong.sum()), 200, 0.22)
            grown = sequential.grown(grown, batch / spread)
            rows_alone = sequential.grown(rows_alone, batch)
            alarms += grown >= math.log(1e4)
            rowwise += rows_alone >= math.log(1e4)
    assert (alarms, rowwise > 10) == (0, True)
