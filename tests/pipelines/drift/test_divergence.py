"""pipelines/drift/inputs/divergence.py: against hand values, and scipy on the values themselves."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats
from scipy.spatial import distance

from pipelines.drift import stats
from pipelines.drift.inputs import divergence
from pipelines.drift.profile.bits import bounds
from pipelines.drift.profile.counts import number_column
from pipelines.drift.profile.spec import Scale

M = np.array([40, 30, 20, 10, 0])
N = np.array([5, 25, 30, 30, 10])


def test_distances_are_scipys():
    """Jensen-Shannon is scipy's with base 2, and KL its entropy.

    PSI is both directions of KL, chi-square its contingency test.
    """
    assert divergence.jensen_shannon(M, N) == pytest.approx(distance.jensenshannon(M, N, base=2))
    assert divergence.kullback_leibler(M[:4], N[:4], smoothing=0.0) == pytest.approx(scipy_stats.entropy(N[:4], M[:4]))
    assert divergence.kullback_leibler(M, N) + divergence.kullback_leibler(N, M) == pytest.approx(stats.psi(M, N))
    expected = scipy_stats.chi2_contingency(np.stack([M, N]), correction=False)
    assert divergence.chi_square(M, N) == pytest.approx((expected.statistic, expected.pvalue))
    assert divergence.chi_square(M, N, 2.0)[0] == pytest.approx(expected.statistic / 2)


def test_by_hand():
    """Shares .5/.5 against .2/.8.

    KL is .2 ln .4 + .8 ln 1.6, and the expected counts of 10 + 10 rows are 3.5 and 6.5.
    """
    p = np.array([5, 5])
    q = np.array([2, 8])
    assert divergence.kullback_leibler(p, q, smoothing=0.0) == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6))
    assert divergence.chi_square(p, q)[0] == pytest.approx(2 * (1.5**2 / 3.5 + 1.5**2 / 6.5))


def test_nothing_to_compare_is_no_distance():
    """Without rows on one side, or with one value on both, every distance is 0 and no test falls."""
    none = np.zeros(3, np.int64)
    one = np.array([0, 7, 0])
    for pair in ((none, M[:3]), (M[:3], none), (one, one)):
        assert divergence.jensen_shannon(*pair) == 0
        assert divergence.kullback_leibler(*pair) == pytest.approx(0)
        assert divergence.chi_square(*pair) == (0.0, 1.0)
        assert divergence.wasserstein(*pair, np.arange(3.0), np.arange(3.0))[0] == 0


@pytest.mark.parametrize("shift", [0.0, 0.1, 3.0, 400.0])
def test_wasserstein_lies_within_its_bound_of_the_exact_one(shift):
    """Wasserstein of the histograms is that of the values, in the feature's units, as far as its bound says."""
    rng = np.random.default_rng(2)
    scale = Scale(50.0, 0.05)
    one = rng.normal(50, 20, 3000)
    two = 10 * rng.gamma(2.0, size=2000) + shift
    a, b = (number_column(pl.Series(values), scale) for values in (one, two))
    bins = np.union1d(a.bins, b.bins)
    counts = [
        np.bincount(np.searchsorted(bins, column.bins), column.counts, bins.size).astype(np.int64) for column in (a, b)
    ]
    value, error = divergence.wasserstein(*counts, *bounds(bins, scale))
    assert value == pytest.approx(scipy_stats.wasserstein_distance(one, two), abs=error)
    assert error < 0.01 * (20 + shift)
