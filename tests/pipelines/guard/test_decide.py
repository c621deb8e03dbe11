"""The guard's answers."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.guard.decide import course, decide
from pipelines.guard.evidence import Answer, Mirrored, Seen, Side
from pipelines.params import GuardParams, Slo
from tests.pipelines.guard.windows import arms, shuffled, side, window

LIMITS = GuardParams(disagreement=0.03)
PROMISED = Slo(p95_ms=100, p99_ms=200)


def e_of(answer: Answer, name: str) -> float:
    """The e-value of a signal."""
    return next(signal.e_value for signal in answer.signals if signal.name == name)


def test_a_rollout_without_windows_is_held() -> None:
    """Before the first window is complete there is nothing to go by."""
    answer = decide([], LIMITS)
    assert (answer.verdict, answer.windows) == ("hold", 0)
    assert answer.reason == "no window is complete yet"


def test_a_challenger_like_the_champion_passes() -> None:
    """Nothing speaks against equal arms, and the answer says so with figures."""
    answer = decide(arms(10), LIMITS, slo=PROMISED)
    assert answer.verdict == "pass"
    assert answer.reason.startswith("nothing speaks against it: 0.5% of 2,500 rows failed, of the champion's 0.3% of")
    assert sum(signal.weight for signal in answer.signals) == pytest.approx(1)


def test_too_few_requests_are_held_and_told() -> None:
    """Below the least number of requests in this stage the answer is hold, and names what is wanted."""
    answer = decide(arms(3, total=400), LIMITS)
    assert answer.verdict == "hold"
    assert answer.reason.startswith("60 requests of the challenger in this stage, 100 are wanted")
    assert decide(arms(5, total=400), LIMITS).verdict == "pass"


def test_a_stage_asks_for_requests_of_its_own() -> None:
    """What the challenger was asked at another weight does not count for this one; in shadow mirrored rows do."""
    windows = [*arms(5), *arms(1, 2500, total=200, first=5)]
    assert decide(windows, LIMITS).reason.startswith("50 requests of the challenger in this stage")
    shadow = [window(0, 0, champion=side(500), mirrored=Mirrored(answered=90))]
    assert decide(shadow, LIMITS).reason.startswith("90 mirrored rows in this stage, 100 are wanted")


def test_errors_take_a_challenger_back_with_both_arms_figures() -> None:
    """Ten times the champion's errors are found within three windows of 250 requests, and told."""
    answer = decide(arms(3, errors=(0.003, 0.031)), LIMITS)
    assert answer.verdict == "fail"
    assert " rows failed, of the champion's 0.3% of " in answer.reason
    assert "since 2026-11-01 00:00; e-value " in answer.reason
    assert answer.reason.endswith(" of 20")


def test_latency_takes_a_challenger_back_by_a_promise_and_without_one() -> None:
    """Above a declared limit in the first window; without one above the champion's windows before, in the second."""
    slow = arms(2, slow=(0.002, 0.9))
    assert decide(slow[:1], LIMITS, slo=PROMISED).verdict == "fail"
    assert "requests took longer than 100 ms" in decide(slow[:1], LIMITS, slo=PROMISED).reason
    assert decide(slow[:1], LIMITS).verdict == "pass"
    assert "requests took over the champion's p9" in decide(slow, LIMITS).reason


def test_a_promise_that_is_kept_is_no_fault() -> None:
    """Four times the champion's share of slow requests, but the p99 is as promised: not taken back for it."""
    answer = decide(arms(40, 5000, slow=(0.002, 0.008)), LIMITS, slo=PROMISED)
    assert answer.verdict == "pass"
    assert e_of(answer, "p99") < 1


def test_a_fault_that_begins_late_is_found_as_soon() -> None:
    """After 20 clean windows, and after more than were declared, errors of 3% take at most three windows."""
    for clean in (20, 45):
        windows = [*arms(clean, total=10_000), *arms(3, total=10_000, errors=(0.003, 0.031), first=clean)]
        assert decide(windows[:clean], LIMITS).verdict == "pass"
        answer = decide(windows, LIMITS)
        assert answer.verdict == "fail"
        assert f"since {windows[clean].begin:%Y-%m-%d %H:%M}" in answer.reason


def test_once_failed_stays_failed() -> None:
    """Clean windows after the one that failed change nothing: a tick that came late says what the first had said."""
    bad = arms(4, errors=(0.003, 0.06))
    first = next(last for last in range(1, 5) if decide(bad[:last], LIMITS).verdict == "fail")
    later = decide([*bad, *arms(60, first=4)], LIMITS)
    assert later == decide(bad[:first], LIMITS)


@pytest.mark.parametrize("weight", [500, 5000])
def test_bursts_of_both_arms_are_nobodys_fault(weight: int) -> None:
    """What hits both arms alike, for one window in ten or from now on, is not the challenger's."""
    burst = {"errors": (0.05, 0.05), "slow": (0.4, 0.4)}
    now_and_then = [
        one
        for place in range(40)
        for one in arms(1, weight, first=place, seed=place, **(burst if place % 10 == 5 else {}))
    ]
    assert decide(now_and_then, LIMITS, slo=PROMISED).verdict == "pass"
    assert decide([*arms(10, weight), *arms(30, weight, first=10, **burst)], LIMITS, slo=PROMISED).verdict == "pass"


def test_a_champion_that_always_fails_much_is_no_reason() -> None:
    """Both fail in 3% of rows, above the limit: the challenger is no worse."""
    for seed in range(5):
        assert decide(arms(40, 5000, total=2000, errors=(0.03, 0.03), seed=seed), LIMITS).verdict == "pass"


def test_rows_of_one_request_count_once() -> None:
    """A request of a hundred rows that fails is one failure: its rows are answered or fail together."""
    windows = [
        window(
            place,
            champion=side(9500, 100, requests=95),
            challenger=side(500, 100 if place == 3 else 0, requests=5),
        )
        for place in range(10)
    ]
    once = decide(windows, LIMITS)
    assert once.verdict == "hold"
    assert once.signals[0].told == "2.0% of 5,000 rows failed, of the champion's 1.1% of 95,000"
    alone = [
        one.model_copy(update={"challenger": side(500, 100 if place == 3 else 0)}) for place, one in enumerate(windows)
    ]
    alone = [one.model_copy(update={"champion": side(9500, 100)}) for one in alone]
    assert decide(alone, LIMITS).verdict == "fail"


def test_refusals_of_the_challenger_alone_take_it_back() -> None:
    """A challenger that refuses what the champion takes is taken back."""
    windows = [
        window(place, champion=Side(answered=4750), challenger=Side(answered=125, refused=125)) for place in range(2)
    ]
    answer = decide(windows, LIMITS)
    assert answer.verdict == "fail"
    assert answer.reason.startswith("50.0% of 250 rows were refused, of the champion's 0.0% of 4,750")


def shadow(failed: int, windows: int = 3, **counts: int) -> list[Seen]:
    """Windows of a shadow: a thousand rows of the champion's, of which some failed, the others mirrored."""
    return [window(place, 0, champion=side(1000, failed), mirrored=Mirrored(**counts)) for place in range(windows)]


def test_a_shadow_is_judged_by_mirrored_rows() -> None:
    """Rows that the challenger missed, beside all of the champion's, and decisions that differ more than is allowed."""
    assert decide(shadow(3, answered=994, disagreed=20, challenger_failed=3), LIMITS).verdict == "pass"
    answer = decide(shadow(3, answered=967, challenger_failed=30), LIMITS)
    assert answer.verdict == "fail"
    assert answer.reason.startswith("3.0% of 997 rows failed, of the champion's 0.3% of 1,000")
    answer = decide(shadow(3, answered=997, disagreed=100), LIMITS)
    assert answer.reason.startswith("10.0% of 997 mirrored rows were decided differently, 3.0% are allowed")
    assert "disagreement" not in {one.name for one in decide(shadow(3, answered=997), GuardParams()).signals}


def test_a_shadow_that_misses_what_is_allowed_is_no_fault() -> None:
    """The champion's failures are not mirrored, and a shadow has little time: only beyond the limit it is one."""
    assert decide(shadow(3, 40, answered=994, challenger_failed=3), LIMITS).verdict == "pass"
    assert decide(shadow(0, 40, answered=992, challenger_failed=8), LIMITS).verdict == "pass"


def test_mirrored_rows_and_the_arm_are_counted_together() -> None:
    """With a mirror in a stage the challenger's rows are those of its arm and the champion's, each of them once."""
    mirrored = Mirrored(answered=970, challenger_failed=15)
    seen = window(0, 5000, champion=side(500, 2), challenger=side(500, 13), mirrored=mirrored)
    told = next(signal.told for signal in decide([seen], LIMITS).signals if signal.name == "errors")
    assert told == "2.8% of 998 rows failed, of the champion's 0.4% of 500"


def test_scores_that_move_take_a_challenger_back() -> None:
    """A constant answer is found after the windows that say what the champion's scores are."""

    def scored(own: dict[int, int]) -> list[Seen]:
        theirs = dict.fromkeys(range(10), 475)
        return [
            window(place, champion=side(4750, scores=theirs), challenger=side(250, scores=own)) for place in range(4)
        ]

    assert decide(scored(dict.fromkeys(range(10), 25)), LIMITS).verdict == "pass"
    answer = decide(scored({7: 250}), LIMITS)
    assert answer.verdict == "fail"
    assert answer.reason.startswith(
        "bin 8 of 10 of the champion's scores holds 90.0% more of the challenger's 250 rows"
    )


def losses(mean: float, n: int, places: Sequence[int]) -> list[Seen]:
    """Windows with paired losses of this mean."""
    generator = np.random.default_rng(3)
    return [
        window(place, champion=side(950), challenger=side(50), losses=tuple(generator.normal(mean, 0.3, n).tolist()))
        for place in places
    ]


def test_a_model_that_loses_more_is_taken_back_by_pairs_and_by_arms() -> None:
    """.05 nats more on each row are found by 2,000 pairs; arms that are compared need more, and find larger ones."""
    answer = decide(losses(0.05, 1000, range(2)), LIMITS)
    assert answer.verdict == "fail"
    assert "beside the champion's on " in answer.reason
    assert decide(losses(0.0, 1000, range(20)), LIMITS).verdict == "pass"
    generator = np.random.default_rng(4)

    def drawn(mean: float, n: int) -> tuple[float, ...]:
        return tuple(generator.gamma(1, mean, n).tolist())

    def alone(more: float) -> list[Seen]:
        return [
            window(
                place,
                champion=side(950),
                challenger=side(150),
                champion_losses=drawn(0.5, 950),
                challenger_losses=drawn(0.5 + more, 150),
            )
            for place in range(20)
        ]

    assert decide(alone(0.0), LIMITS).verdict == "pass"
    assert decide(alone(0.2), LIMITS).verdict == "fail"


def test_a_tolerated_loss_is_in_the_metrics_unit() -> None:
    """What is no more than the limit, and what labels say when they are not watched, is no fault."""
    worse = losses(0.05, 1000, range(10))
    assert decide(worse, GuardParams(loss=0.06)).verdict == "pass"
    unwatched = decide(worse, GuardParams(loss=None))
    assert unwatched.verdict == "pass"
    assert sum(signal.weight for signal in unwatched.signals) == pytest.approx(1)


def test_losses_beyond_their_bound_count_as_the_bound() -> None:
    """One pair that is infinitely far off is one pair, and takes nothing back."""
    seen = window(0, champion=side(950), challenger=side(150), losses=(1e9,))
    assert decide([seen], LIMITS).verdict == "pass"
    assert np.isfinite(decide([seen.model_copy(update={"losses": (-1e9,)})], LIMITS).e_value)


def soak(errors: float, before: float, limit_rows: int = 1000) -> list[Seen]:
    """Half of the keys for five windows, then all of them."""
    windows = arms(5, 5000, total=2 * limit_rows, errors=(before, before))
    return [*windows, *arms(4, 10_000, total=limit_rows, errors=(0, errors), first=5, seed=1)]


def test_a_soak_is_held_against_the_champions_windows_before() -> None:
    """Without a concurrent champion a window is bad by the limit, unless the champion's were as bad before."""
    assert decide(soak(0.003, 0.003), LIMITS).verdict == "pass"
    answer = decide(soak(0.05, 0.003), LIMITS)
    assert answer.verdict == "fail"
    assert ", of the champion's before 0.4% of 5,000" in answer.reason
    assert decide(soak(0.05, 0.05), LIMITS).verdict == "pass"


def test_windows_may_come_in_any_order_and_none_twice() -> None:
    """The same windows give the same answer; one that is given twice is an error that names it."""
    windows = arms(12, errors=(0.003, 0.01))
    for seed in range(3):
        assert decide(shuffled(windows, seed), LIMITS) == decide(windows, LIMITS)
    with pytest.raises(DataError, match=r"the window from 2026-11-01T00:05:00.*give each window once"):
        decide([*windows, windows[1]], LIMITS)


def test_a_latency_in_no_bin_is_an_error() -> None:
    """Counts that were made by other bins are not taken for ours."""
    with pytest.raises(DataError, match="bins of latencies are 0 to 95"):
        decide([window(0, champion=Side(latency={96: 1}))], LIMITS)


def test_an_answer_survives_json() -> None:
    """What is written as evidence is read as it was."""
    answer = decide(arms(3, errors=(0.003, 0.5)), LIMITS)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


counts = st.integers(0, 300)
sides = st.builds(
    Side,
    answered=counts,
    failed=counts,
    refused=counts,
    latency=st.dictionaries(st.integers(0, 95), counts, max_size=4),
    scores=st.dictionaries(st.integers(-81, 81), counts, max_size=4),
)
few = st.lists(st.floats(-10, 10), max_size=5).map(tuple)
windows_of_any_kind = st.lists(
    st.tuples(st.sampled_from([0, 500, 5000, 10_000]), sides, sides, counts, counts, few, few, few),
    min_size=1,
    max_size=8,
).map(
    lambda drawn: [
        window(
            place,
            weight,
            champion=champion,
            challenger=challenger,
            mirrored=Mirrored(answered=a, disagreed=min(a, b), champion_failed=b, challenger_failed=a),
            losses=pairs,
            champion_losses=own,
            challenger_losses=other,
        )
        for place, (weight, champion, challenger, a, b, pairs, own, other) in enumerate(drawn)
    ]
)


@settings(deadline=None, max_examples=25)
@given(windows_of_any_kind)
def test_what_is_said_after_a_window_depends_on_those_before_alone(windows: list[Seen]) -> None:
    """Whatever the windows hold: e-values are finite, never negative, and later windows do not change them."""
    whole = course(windows, LIMITS)
    assert np.isfinite(whole.e).all()
    assert (whole.e >= -1e-9).all()
    for last in range(1, len(windows) + 1):
        part = course(windows[:last], LIMITS)
        np.testing.assert_allclose(part.e, whole.e[:, :last], rtol=1e-9, atol=1e-12)
    answer = decide(windows, LIMITS)
    assert (answer.verdict == "fail") is (whole.stopped(LIMITS.alpha) is not None)


def test_arms_at_the_tolerated_edge_are_rarely_taken_back() -> None:
    """Of 80 rollouts of 40 windows of arms that are as bad as is tolerated, at most 5% (and three errors) fail."""
    failed = sum(
        decide(arms(40, 5000, total=400, errors=(0.01, 0.015), slow=(0.01, 0.015), seed=seed), LIMITS).verdict == "fail"
        for seed in range(80)
    )
    assert failed / 80 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)
