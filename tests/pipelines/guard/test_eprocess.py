"""E-processes by their definition: exact expectations on small spaces, brute force, and levels by simulation."""

from itertools import permutations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.guard import eprocess as e

SLACK = 1 + 1e-9


def pmf(n: int, p: float) -> np.ndarray:
    """The binomial distribution."""
    return np.array([comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@given(st.lists(st.sampled_from([0, 500, 2500, 10_000]), min_size=1, max_size=120), st.integers(1, 50))
def test_the_prior_adds_up_to_at_most_one(weights: list[int], windows: int) -> None:
    """However often the weight changes and however long a rollout lasts, no more than the whole budget is spent."""
    prior = e.starts(weights, windows)
    assert (prior > 0).all()
    assert prior.sum() <= SLACK


def test_the_prior_of_a_window_depends_on_those_before_alone() -> None:
    """What follows a window changes nothing of what was bet in it."""
    weights = [0, 0, 500, 500, 2500, 2500, 5000]
    whole = e.starts(weights, 4)
    for last in range(1, len(weights)):
        np.testing.assert_array_equal(e.starts(weights[:last], 4), whole[:last])


def test_e_values_are_the_sum_over_all_starts() -> None:
    """The recursion equals a bet on every window as the start, each weighted by its prior, and what is not yet bet."""
    increments = np.random.default_rng(0).normal(0, 2, (12, 3))
    prior = e.starts([500] * 12, 10)
    for last in range(12):
        begun = [prior[start] * np.exp(increments[start : last + 1].sum(axis=0)).mean() for start in range(last + 1)]
        expected = sum(begun) + 1 - prior[: last + 1].sum()
        found = e.e_values(increments[: last + 1], prior[: last + 1])
        assert found[-1].mean() == pytest.approx(expected)


def test_e_values_stay_finite() -> None:
    """Evidence of thousands of nats is told as the most there is, and more against it takes that back."""
    found = e.e_values(np.array([[5e4], [5e4], [-2e5]]), e.starts([1, 1, 1], 3))
    assert found[:2].tolist() == [[e.MOST], [e.MOST]]
    assert found[2, 0] < 1


@pytest.mark.parametrize(("n", "share"), [(1, 0.01), (7, 0.3), (12, 0.6)])
def test_bets_on_counts_are_fair_at_their_limit_and_lose_below(n: int, share: float) -> None:
    """Each bet multiplies by 1 in expectation where the chance is the limit, and by less where it is lower."""
    hits = np.arange(n + 1.0)
    factors = np.exp(e.counts(hits, np.full(n + 1, float(n)), share))
    np.testing.assert_allclose(pmf(n, share) @ factors, 1)
    assert (pmf(n, share / 2) @ factors < 1).all()
    assert (pmf(n, min(1.5 * share, 1)) @ factors > 1).any()


def test_nothing_is_bet_where_there_is_nothing() -> None:
    """A window without rows, and a share that nothing can exceed, leave the evidence as it is."""
    assert not e.counts(np.array([0.0, 3.0]), np.array([0.0, 3.0]), np.array([0.1, 1.0])).any()


def test_the_tail_is_the_binomials() -> None:
    """The chance of at least so many hits is the exact sum."""
    for hits in range(9):
        exact = pmf(8, 0.2)[hits:].sum()
        assert e.tail(np.array([float(hits)]), np.array([8.0]), 0.2)[0] == pytest.approx(exact)


def test_bad_windows_are_a_fair_bet_and_bounded() -> None:
    """At a chance of BAD each bet is fair, and one bad window cannot bring more than 95 times the stake."""
    bad, other = np.exp(e.bad_windows(np.array([True, False]), np.array([True, True])))
    np.testing.assert_allclose(e.BAD * bad + (1 - e.BAD) * other, 1)
    assert bad.max() < 96
    assert not e.bad_windows(np.array([True]), np.array([False])).any()


@given(st.floats(-1, -0.01), st.floats(0.01, 1))
def test_bets_on_means_are_fair_at_a_mean_of_zero(low: float, high: float) -> None:
    """Of two values whose mean is 0 the expectation of each factor is 1, at the bound of the values too."""
    chance = -low / (high - low)
    factors = [np.exp(e.mean_above([value], 1.0)) for value in (low, high)]
    np.testing.assert_allclose((1 - chance) * factors[0] + chance * factors[1], 1)


def test_a_null_with_bursts_is_held() -> None:
    """Calm windows at one limit and bursts of both arms at the other: no bet grows in expectation."""
    n, limit, share = 10, 0.05, 0.6
    hits = np.arange(n + 1.0)
    for rate in (0.05, 0.3, 0.9):
        calm = e.counts(hits, np.full(n + 1, float(n)), limit)[:, None]
        beside = np.array([e.counts(hits, hits + y, share) for y in range(n + 1)]).swapaxes(0, 1)
        factors = np.exp(e.unless_burst(np.broadcast_to(calm, beside.shape), beside))
        burst = np.einsum("x,y,xyb->b", pmf(n, rate), pmf(n, rate), factors)
        quiet = np.einsum("x,y,xyb->b", pmf(n, limit), pmf(n, limit), factors)
        assert ((1 - e.BURSTS) * quiet + e.BURSTS * burst <= SLACK).all()


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 5), (5, 2)])
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_bets_on_shares_do_not_grow_at_the_margin(n: int, m: int, margin: float) -> None:
    """Whatever the champion's share is, a challenger that has exactly the margin more wins no bet in expectation."""
    x, y = (np.array(pair) for pair in zip(*product(range(n + 1), range(m + 1)), strict=True))
    rows = np.ones(len(x))
    found = e.share_above(x[:, None] * 1.0, y[:, None] * 1.0, n * rows, m * rows, margin)
    for q in np.linspace(0, 1 - margin, 8):
        chances = pmf(n, q + margin)[x] * pmf(m, q)[y]
        assert (chances @ np.exp(found) <= SLACK).all()


def test_bets_on_shares_are_below_the_mean_over_all_pairings() -> None:
    """The closed form is the mean logarithm over who is paired with whom, and so below that of the product."""
    own, theirs, margin = [1, 1, 0], [0, 1, 0], 0.05
    products = []
    for paired in permutations(theirs):
        d = np.subtract(own, paired)
        products.append(np.log1p(np.multiply.outer((d - margin) / (1 + margin), e.SHARES)).sum(axis=0))
    closed = e.share_above(np.array([[2.0]]), np.array([[1.0]]), np.array([3.0]), np.array([3.0]), margin)[0]
    np.testing.assert_allclose(closed, np.mean(products, axis=0))
    assert (closed <= np.log(np.exp(products).mean(axis=0)) + 1e-12).all()


@given(st.lists(st.floats(0, 1), max_size=40), st.lists(st.floats(0, 1), max_size=40))
def test_matched_blocks_use_no_row_twice(champion: list[float], challenger: list[float]) -> None:
    """There are as many differences as the smaller arm has rows, each within the losses' range."""
    found = e.matched(np.array(champion), np.array(challenger))
    assert len(found) == min(len(champion), len(challenger))
    assert (np.abs(found) <= SLACK).all()


def level(increments: np.ndarray) -> float:
    """The share of streams ``[streams, T, bets]`` that ever reach 20."""
    prior = e.starts([500] * increments.shape[1], 40)
    return float(np.mean([(e.e_values(stream, prior).mean(axis=1) >= 20).any() for stream in increments]))


@pytest.mark.parametrize(("n", "m", "rate"), [(250, 4750, 0.003), (250, 4750, 0.05), (500, 500, 0.05), (50, 950, 0.01)])
def test_the_control_arm_holds_its_level_at_the_tolerated_ratio(n: int, m: int, rate: float) -> None:
    """Of 600 streams in which the challenger fails 1.5 times as often, at most 5% (and three errors) are stopped."""
    generator = np.random.default_rng(n + m)
    x, y = generator.binomial(n, 1.5 * rate, (600, 40)), generator.binomial(m, rate, (600, 40))
    share = 1.5 * n / (1.5 * n + m)
    found = e.counts((x.ravel() * 1.0), (x + y).ravel() * 1.0, share).reshape(600, 40, -1)
    assert level(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


@settings(deadline=None)
@given(st.sampled_from([(50, 950), (500, 500)]), st.sampled_from([0.0, 0.1, 0.45]))
def test_shares_hold_their_level_at_the_margin(sizes: tuple[int, int], share: float) -> None:
    """Of 200 streams in which one bin has exactly 5% more, at most 5% (and three errors) are stopped."""
    (n, m), generator = sizes, np.random.default_rng(7)
    own, theirs = (
        np.stack([generator.binomial(rows, p, (200, 40)), np.zeros((200, 40))], axis=-1)
        for rows, p in ((n, share + 0.05), (m, share))
    )
    found = [
        e.share_above(x, y, np.full(40, float(n)), np.full(40, float(m)), 0.05)
        for x, y in zip(own, theirs, strict=True)
    ]
    assert level(np.array(found)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
