"""pipelines/drift/stats.py: against hand values, scipy and simulation."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from pipelines.drift import stats
from pipelines.drift.profile.counts import number_column
from pipelines.drift.profile.spec import Scale


def test_psi_by_hand():
    """PSI of .5/.5 against .2/.8 is .3 ln(.8/.5) + .3 ln(.5/.2), in both directions, and nothing against itself."""
    p = np.array([50, 50])
    q = np.array([20, 80])
    expected = 0.3 * math.log(0.8 / 0.5) + 0.3 * math.log(0.5 / 0.2)
    assert stats.psi(p, q, smoothing=0.0) == pytest.approx(expected)
    assert stats.psi(q, p, smoothing=0.0) == pytest.approx(expected)
    assert stats.psi(p, p) == 0.0
    assert stats.psi(p * 1000, q * 1000) == pytest.approx(expected, rel=1e-4)


def test_edges_of_a_continuous_reference_are_its_quantiles():
    """A continuous reference is cut into groups of equal mass, up to one bin's worth."""
    values = np.random.default_rng(0).normal(size=20_000)
    counts = number_column(pl.Series(values), Scale(0.0, 1.0)).counts
    folded = stats.fold(counts, stats.groups(counts, 10))
    assert folded.size == 10
    assert np.abs(folded - 2000).max() <= 2 * counts.max()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([0, 100, 0], [1, 0, 1], id="constant: equal or different"),
        pytest.param([4, 96], [0, 1], id="pdays: the few, and 999"),
        pytest.param([40, 0, 60, 0], [0, 2, 1, 2], id="two values: anything else is unseen"),
        pytest.param([90, 2, 2, 2, 4], [0, 1, 1, 1, 1], id="previous: 0, and more"),
        pytest.param([0, 5, 5, 5, 5, 0], [0, 0, 1, 2, 3, 3], id="outer groups are open"),
    ],
)
def test_edges_of_tied_values(counts: list[int], expected: list[int]):
    """Values with much mass are groups of their own, whatever lies around them."""
    assert stats.groups(np.array(counts), 4 if len(counts) == 6 else 10).tolist() == expected


def test_ks_lies_within_its_bound_of_the_exact_one():
    """The exact KS distance of the values lies between the histograms' and that plus the bound."""
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.1, 1.0, 30.0):
        one = rng.normal(size=3000)
        two = rng.gamma(2.0, size=2000) + shift
        a, b = (number_column(pl.Series(values), Scale(0.0, 1.0)) for values in (one, two))
        bins = np.union1d(a.bins, b.bins)
        counts = [np.zeros(bins.size, np.int64), np.zeros(bins.size, np.int64)]
        for column, into in zip((a, b), counts, strict=True):
            into[np.searchsorted(bins, column.bins)] = column.counts
        distance, error = stats.ks(*counts)
        exact = scipy_stats.ks_2samp(one, two, method="asymp").statistic
        assert distance - 1e-12 <= exact <= distance + error + 1e-12
        assert error < 0.1


def test_pearsons_divergence_is_the_chi_squared_of_the_table():
    """Times the effective rows it is scipy's chi-squared statistic of the two samples.

    Bins that neither has are left out.
    """
    m = np.array([500, 300, 0, 200, 7])
    n = np.array([40, 90, 0, 20, 0])
    expected = scipy_stats.chi2_contingency(np.stack([m, n])[:, [0, 1, 3, 4]], correction=False).statistic
    assert stats.pearson(m, n) * stats.effective_rows(1007, 150) == pytest.approx(expected)
    assert stats.pearson(m, m) == 0.0
    assert stats.pearson(m, 0 * m) == 0.0


def test_debiased_psi_is_nothing_on_average_without_drift():
    """Over 4,000 pairs of equal samples plain PSI averages (B - 1) / ne and the debiased one nothing."""
    rng = np.random.default_rng(8)
    p = np.full(10, 0.1)
    m = rng.multinomial(20_000, p, 4000)
    n = rng.multinomial(1000, p, 4000)
    ne = stats.effective_rows(20_000, 1000)
    plain = np.array([stats.psi(a, b) for a, b in zip(m, n, strict=True)])
    assert plain.mean() == pytest.approx(9 / ne, rel=0.05)
    assert np.mean([stats.debiased_psi(value, 10, ne) for value in plain]) == pytest.approx(0.0, abs=0.05 * 9 / ne)


def test_benjamini_hochberg_is_scipys():
    """The same hypotheses fall as by scipy's adjusted p-values."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        p = rng.beta(0.3, 2.0, 20)
        assert stats.benjamini_hochberg(p, 0.05).tolist() == (scipy_stats.false_discovery_control(p) <= 0.05).tolist()
    assert stats.benjamini_hochberg(np.array([]), 0.05).tolist() == []


def test_minimum_effect_p_is_a_p_value_at_its_boundary():
    """With no effect to spare it is the chi-squared test.

    At a true PSI of delta0 it rejects about as often as it says.
    """
    assert stats.minimum_effect_p(0.05, 10, 500.0, 1e-12) == pytest.approx(scipy_stats.chi2.sf(25.0, 9), rel=1e-4)
    rng = np.random.default_rng(5)
    p = np.full(10, 0.1)
    q = p + np.array([1, -1] * 5) * 0.01
    delta0 = float(((q - p) * np.log(q / p)).sum())
    m = rng.multinomial(20_000, p, 2000)
    n = rng.multinomial(2000, q, 2000)
    ne = stats.effective_rows(20_000, 2000)
    rejected = np.mean(
        [stats.minimum_effect_p(stats.psi(a, b), 10, ne, delta0) < 0.05 for a, b in zip(m, n, strict=True)]
    )
    assert 0.02 < rejected < 0.08


def test_stable_windows_raise_no_false_alarm():
    """Of 1,000 stable windows of 20 features, not one has the same feature drifted in 2 of 3.

    That holds at 200 and at 1,000 rows.
    """
    rng = np.random.default_rng(6)
    for rows in (200, 1000):
        ne = stats.effective_rows(100_000, rows)
        reference = rng.multinomial(100_000, np.full(10, 0.1), 20)
        counts = rng.multinomial(rows, np.full(10, 0.1), (1000, 20))
        p = (reference + 0.5) / (reference.sum(axis=1, keepdims=True) + 5)
        q = (counts + 0.5) / (rows + 5)
        values = ((q - p) * np.log(q / p)).sum(axis=-1)
        p_values = scipy_stats.ncx2.sf(values * ne, 9, 0.01 * ne)
        assert p_values[0, 0] == pytest.approx(
            stats.minimum_effect_p(stats.psi(reference[0], counts[0, 0]), 10, ne, 0.01)
        )
        drifted = np.array([stats.benjamini_hochberg(window, 0.01) for window in p_values]).astype(int)
        assert (drifted[:-2] + drifted[1:-1] + drifted[2:]).max() < 2


def test_overdispersion_is_pearsons_statistic_by_its_freedom():
    """It is scipy's chi-squared of the table of days by its degrees of freedom, empty days and bins left out."""
    days = np.array([[30, 5, 0, 12], [8, 22, 0, 3], [0, 0, 0, 0], [15, 15, 0, 40]])
    found = scipy_stats.chi2_contingency(days[[0, 1, 3]][:, [0, 1, 3]])
    assert stats.overdispersion(days) == pytest.approx(found.statistic / found.dof)


def test_few_sessions_are_no_drift():
    """Windows of 15 sessions of 14 equal rows.

    Psi alone rejects in more than 0.3% of stable windows, with Pearson's divergence in fewer than 0.1%.
    """
    rng = np.random.default_rng(9)
    p = np.full(10, 0.1)
    reference = 14 * rng.multinomial(450, p)
    windows = 14 * rng.multinomial(15, p, 2000)
    ne = stats.effective_rows(6300, 210, 14.0)
    values = [(stats.psi(reference, window), stats.pearson(reference, window)) for window in windows]
    by_psi, by_both = (
        np.mean([stats.minimum_effect_p(value, 10, ne, 0.01) < 5e-4 for value in found])
        for found in ([a for a, _ in values], map(min, values))
    )
    assert by_psi > 0.003
    assert by_both < 0.001


def test_overdispersion_sees_days_that_resemble_themselves():
    """Independent rows give about 1; days that hold one value each give about their number of rows."""
    rng = np.random.default_rng(7)
    assert stats.overdispersion(rng.multinomial(100, np.full(10, 0.1), 60)) == pytest.approx(1.0, abs=0.15)
    days = np.zeros((60, 4), np.int64)
    days[np.arange(60), rng.integers(0, 4, 60)] = 100
    assert stats.overdispersion(days) == pytest.approx(100, rel=0.05)
    assert stats.overdispersion(np.array([[5, 5]])) == 1.0
