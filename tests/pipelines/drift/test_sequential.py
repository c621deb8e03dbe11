"""pipelines/drift/labels/sequential.py: what labels prove, and how rarely they do so by chance."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pipelines.drift.labels import sequential
from pipelines.measures import design_effect


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
            log_e = sequential.cusum(log_e, int(errors), 200, 0.1)
            if log_e >= threshold:
                alarms += 1
                break
        log_e = 0.0
        delay = 0
        while log_e < threshold:
            log_e = sequential.cusum(log_e, int(rng.binomial(200, 0.2)), 200, 0.1)
            delay = delay + 1
        delays.append(delay)
    assert alarms <= 400 * 500 / 1e4
    assert np.median(delays) <= 2


def test_no_labels_change_nothing():
    """A window without labels leaves the process where it is, and it never leaves the range of a float."""
    assert sequential.cusum(3.0, 0, 0, 0.1) == 3.0
    assert sequential.cusum(600.0, 100_000, 100_000, 0.01) == sequential.MAX_LOG_E


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
            grown = sequential.cusum(grown, int(wrong.sum()), 200, 0.22, spread)
            rows_alone = sequential.cusum(rows_alone, int(wrong.sum()), 200, 0.22)
            alarms += grown >= math.log(1e4)
            rowwise += rows_alone >= math.log(1e4)
    assert (alarms, rowwise > 10) == (0, True)
