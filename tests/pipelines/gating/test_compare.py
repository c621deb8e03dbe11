"""The paired comparison and the number of rows that a decision needs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.contracts import Interval
from pipelines.gating.compare import lift
from pipelines.gating.paired import means
from pipelines.gating.power import rows_by_width, rows_needed

losses = st.lists(st.tuples(st.floats(0, 14), st.floats(0, 14)), min_size=2, max_size=60)


def interval(opponent, challenger=None, draws=200, seed=0):
    """The 95% interval of what the challenger's losses (None: zeros) save against the opponent's in the mean."""
    opponent = np.asarray(opponent, np.float64)
    challenger = np.zeros_like(opponent) if challenger is None else challenger
    return lift(means(opponent, challenger), confidence=0.95, draws=draws, seed=seed)


@given(losses)
@settings(max_examples=60, deadline=None)
def test_swapping_champion_and_challenger_flips_the_sign(pairs):
    """The lift of A over B is minus the lift of B over A, and the two cannot both be better with confidence."""
    a, b = np.array(pairs).T
    forward, back = interval(a, b), interval(b, a)
    assert forward.value == pytest.approx(-back.value, abs=1e-12)
    assert not (forward.low > 0 and back.low > 0)


@given(losses, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(pairs, shuffler):
    """The same rows in another order give the same interval, but for rounding."""
    a, b = np.array(pairs).T
    rows = list(range(len(a)))
    shuffler.shuffle(rows)
    there, back = interval(a, b), interval(a[rows], b[rows])
    assert [there.low, there.value, there.high] == pytest.approx([back.low, back.value, back.high], abs=1e-12)


@given(losses)
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_estimate_and_both_kinds(pairs):
    """The lower bound is not above the estimate, the upper one not below it.

    Neither is inside of the normal interval or of the middle resampled means, which never leave the range of the rows.
    """
    a, b = np.array(pairs).T
    pair = means(a, b)
    found = interval(a, b)
    assert found.low <= found.value <= found.high
    assert found.low <= pair.lift - 1.959 * pair.se
    assert found.high >= pair.lift + 1.959 * pair.se
    drawn = pair.resample(np.random.default_rng(0), 200, len(a))
    assert (a - b).min() - 1e-12 <= drawn.min() <= drawn.max() <= (a - b).max() + 1e-12
    assert found.low <= np.quantile(drawn, 0.025) + 1e-12


def test_the_interval_agrees_with_scipy():
    """The percentile bootstrap of scipy over the same rows gives the same bounds within Monte Carlo error."""
    d = np.random.default_rng(1).normal(0.02, 0.3, 1500)
    found = interval(d, draws=20_000)
    peer = stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx(d.mean())
    assert found.low == pytest.approx(peer.low, abs=1e-3)
    assert found.high == pytest.approx(peer.high, abs=1e-3)


def test_the_interval_is_fixed_by_its_seed():
    """The same seed gives the same interval, another seed another one, and chunking changes nothing."""
    d = np.random.default_rng(1).normal(0, 1, 500)
    assert interval(d) == interval(d)
    assert interval(d) != interval(d, seed=1)


def test_chunks_do_not_change_the_interval(monkeypatch):
    """Drawing in small chunks gives the interval that drawing at once gives."""
    d = np.random.default_rng(1).normal(0, 1, 50)
    whole = interval(d)
    monkeypatch.setattr("pipelines.gating.paired._CHUNK", 1)
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


def test_rows_by_the_width_of_the_interval():
    """Twice as far as it may reach takes four times the rows; on the bound no number does."""
    found = Interval(value=0.015, low=-0.005, high=0.02)
    assert rows_by_width(found, 500, 0.005) == 1500
    assert rows_by_width(found, 500, 0.018) == 889
    assert rows_by_width(found, 500, 0.015) is None
