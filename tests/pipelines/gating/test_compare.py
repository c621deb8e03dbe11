"""The paired comparison and the number of rows that a decision needs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.gating.compare import improvement, lift
from pipelines.gating.power import rows_needed

losses = st.lists(st.tuples(st.floats(0, 14), st.floats(0, 14)), min_size=2, max_size=60)


def interval(d, draws=200, seed=0):
    """The 95% interval of the mean of ``d``."""
    return lift(np.asarray(d), confidence=0.95, draws=draws, seed=seed)


@given(losses)
@settings(max_examples=60, deadline=None)
def test_swapping_champion_and_challenger_flips_the_sign(pairs):
    """The lift of A over B is minus the lift of B over A, and the two cannot both be better with confidence."""
    a, b = np.array(pairs).T
    forward, back = interval(improvement(a, b)), interval(improvement(b, a))
    assert forward.value == pytest.approx(-back.value, abs=1e-12)
    assert not (forward.low > 0 and back.low > 0)


@given(losses, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(pairs, shuffler):
    """The same rows in another order give the same interval, bit for bit."""
    a, b = np.array(pairs).T
    rows = list(range(len(a)))
    shuffler.shuffle(rows)
    assert interval(improvement(a, b)) == interval(improvement(a[rows], b[rows]))


@given(losses)
@settings(max_examples=60, deadline=None)
def test_the_interval_is_ordered_and_within_the_values(pairs):
    """The lower bound is not above the upper one, and no resampled mean leaves the range of the paired improvements."""
    d = improvement(*np.array(pairs).T)
    found = interval(d)
    assert d.min() - 1e-12 <= found.low <= found.high <= d.max() + 1e-12


def test_the_interval_agrees_with_scipy():
    """The percentile bootstrap of scipy over the same rows gives the same bounds within Monte Carlo error."""
    d = np.random.default_rng(1).normal(0.02, 0.3, 1500)
    found = interval(d, draws=2000)
    peer = stats.bootstrap(
        (d,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx(d.mean())
    assert found.low == pytest.approx(peer.low, abs=1.5e-3)
    assert found.high == pytest.approx(peer.high, abs=1.5e-3)


def test_the_interval_is_fixed_by_its_seed():
    """The same seed gives the same interval, another seed another one, and chunking changes nothing."""
    d = np.random.default_rng(1).normal(0, 1, 500)
    assert interval(d) == interval(d)
    assert interval(d) != interval(d, seed=1)


def test_chunks_do_not_change_the_interval(monkeypatch):
    """Drawing in small chunks gives the interval that drawing at once gives."""
    d = np.random.default_rng(1).normal(0, 1, 50)
    whole = interval(d)
    monkeypatch.setattr("pipelines.gating.compare._CHUNK", 1)
    assert interval(d) == whole


def test_equal_improvements_have_no_spread():
    """Rows that all improve by the same amount give an interval of no width."""
    found = interval([0.1] * 7)
    assert (found.low, found.value, found.high) == (0.1, 0.1, 0.1)


def test_rows_needed_are_enough_and_not_more():
    """With the rows that it asks for, the normal interval leaves min_lift; with one row fewer it does not."""
    mean, sd, n, least = 0.02, 0.4, 500, 0.005
    total = n + rows_needed(mean, sd, n, min_lift=least, confidence=0.95)
    half = stats.norm.ppf(0.975) * sd
    assert half / math.sqrt(total) <= mean - least < half / math.sqrt(total - 1)


def test_rows_needed_at_the_edges():
    """An estimate on min_lift can never be decided; one that nearly is decided needs at least one more row."""
    assert rows_needed(0.005, 0.4, 500, min_lift=0.005, confidence=0.95) is None
    assert rows_needed(0.5, 0.001, 500, min_lift=0.005, confidence=0.95) == 1
