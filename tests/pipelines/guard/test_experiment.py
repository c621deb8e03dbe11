"""Experiments: exact e-values and boundaries, maturity, verdicts, and levels with a look at every step."""

from datetime import UTC, datetime, timedelta
from math import comb, exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import ndtri

from pipelines.errors import DataError
from pipelines.guard import bandit
from pipelines.guard.evidence import Answer
from pipelines.guard.experiment import Look, Plan, Result, Sums, Unit, boundary, course, experiment, mature

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
OPEN, ENDING = Plan(outcome="binary"), Plan(outcome="binary", units=4000)
FIGURES = Plan(outcome="number", effect=0.1)


def look(place: int, n: int, x: float, m: int, y: float) -> Look:
    """A look of binary outcomes: x of n champion's, y of m challenger's."""
    sides = [Sums(n=rows, total=hits, squares=hits) for rows, hits in ((n, x), (m, y))]
    return Look(at=BEGIN + timedelta(days=place), champion=sides[0], challenger=sides[1])


def looks(first: float, second: float, count: int = 20, seed: int = 0, n: int = 100) -> list[Look]:
    """Looks of equally large arms with these rates."""
    generator = np.random.default_rng(seed)
    return [look(place, n, generator.binomial(n, first), n, generator.binomial(n, second)) for place in range(count)]


def test_the_open_end_is_a_mixture_of_conditional_likelihoods() -> None:
    """The value of two small tables is that of the definition, summed over all tables with the same margins."""
    tables = [(5, 1, 4, 3), (6, 2, 6, 4)]
    bets = 0.2 * ndtri((np.arange(21) + 0.5) / 21)
    e = 0.0
    for theta in bets:
        ratio = 1.0
        for n, x, m, y in tables:
            positives = x + y
            ways = {u: comb(m, u) * comb(n, positives - u) for u in range(max(0, positives - n), min(m, positives) + 1)}
            ratio *= exp(theta * y) / (sum(w * exp(theta * u) for u, w in ways.items()) / comb(n + m, positives))
        e += ratio / 21
    path, signs = course([look(place, *table) for place, table in enumerate(tables)], OPEN)
    assert path[-1] == pytest.approx(min(1 / e, 1))
    assert signs.tolist() == [1, 1]


def test_the_open_end_is_fair_given_the_positives() -> None:
    """Over all tables with the same margins the expectation of the e-value is 1 if the odds are equal."""
    n, m, positives = 30, 20, 12
    ways = np.array([comb(m, u) * comb(n, positives - u) for u in range(positives + 1)])
    values = np.array([1 / course([look(0, n, positives - u, m, u)], OPEN)[0][0] for u in range(positives + 1)])
    # Values below 1 are told as 1, so that the mean is at least that.
    assert 1 <= (ways / ways.sum()) @ values < 1.1


def test_the_boundary_is_obriens_and_flemings() -> None:
    """At .05 it is 2.2414, at the end no test of a fixed size is much easier, and early looks need far more."""
    assert boundary(0.05) == pytest.approx(2.2414, abs=1e-4)
    late = [*[look(place, 100, 10, 100, 10) for place in range(19)], look(19, 100, 10, 100, 54)]
    z = (244 - 200) / 2000 / np.sqrt(2 * (444 / 4000) * (1 - 444 / 4000) / 2000)
    path = course(late, ENDING)[0]
    assert bool(path[-1] <= 0.05) is bool(z >= boundary(0.05))
    assert course([look(0, 100, 5, 100, 15)], ENDING)[0][0] > 0.5


def test_an_experiment_ends_at_its_declared_size() -> None:
    """Behind the declared size nothing decides any more, and the answer says that it ended."""
    same = [look(place, 100, 10, 100, 10) for place in range(20)]
    assert experiment(same[:19], ENDING).verdict == "no difference yet"
    ended = experiment(same, ENDING)
    assert ended.verdict == "ended without a difference"
    assert ended.reason.endswith("4,000 of 4,000 units")
    after = [*same, *[look(20 + place, 100, 0, 100, 90) for place in range(10)]]
    assert experiment(after, ENDING).verdict == "ended without a difference"


@pytest.mark.parametrize("plan", [OPEN, ENDING])
def test_the_first_decision_stays(plan: Plan) -> None:
    """A challenger that was found better is better, whatever the looks after that say; worse where less is wanted."""
    found = looks(0.1, 0.2)
    assert experiment(found, plan).verdict == "better"
    back = [*found, *[look(20 + place, 100, 20, 100, 10) for place in range(15)]]
    assert experiment(back, plan).verdict == "better"
    assert experiment(found, plan.model_copy(update={"better": "lower"})).verdict == "worse"
    assert experiment(looks(0.2, 0.1), plan).verdict == "worse"


def test_figures_are_compared_by_their_means() -> None:
    """A mean that is higher by a third of a standard deviation is found, an equal one is not; few units say nothing."""
    generator = np.random.default_rng(1)

    def drawn(more: float, n: int) -> list[Look]:
        found = []
        for place in range(10):
            sides = [generator.exponential(size=n), generator.exponential(size=n) + more]
            sums = [Sums(n=n, total=one.sum(), squares=(one**2).sum()) for one in sides]
            found.append(Look(at=BEGIN + timedelta(days=place), champion=sums[0], challenger=sums[1]))
        return found

    better = experiment(drawn(0.35, 100), FIGURES)
    assert better.verdict == "better"
    assert better.low is not None
    assert better.high is not None
    assert 0 < better.low < better.estimate < better.high
    assert experiment(drawn(0.0, 100), FIGURES).verdict == "no difference yet"
    few = experiment(drawn(5.0, 5), FIGURES)
    assert (few.verdict, few.low, few.high, few.p) == ("no difference yet", None, None, 1)


def test_intervals_hold_the_truth_at_all_looks() -> None:
    """In 40 experiments at most 5% (and three errors) have any look at which the interval misses the truth."""
    odds = (0.3 / 0.7) / (0.2 / 0.8)
    missed = {"table": 0, "end": 0}
    for seed in range(40):
        found = looks(0.2, 0.3, seed=seed, count=7)
        for name, plan, truth in (("table", OPEN, odds), ("end", ENDING, 0.1)):
            results = [experiment(found[: last + 1], plan) for last in range(0, 7, 3)]
            missed[name] += any(
                (one.low is not None and one.low > truth) or (one.high is not None and one.high < truth)
                for one in results
            )
    assert max(missed.values()) / 40 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


@pytest.mark.parametrize("plan", [OPEN, ENDING, FIGURES])
def test_looking_at_every_step_keeps_the_level(plan: Plan) -> None:
    """Of 400 experiments without a difference at most 5% (and three errors) ever decide."""
    decided = sum(bool((course(looks(0.3, 0.3, seed=seed), plan)[0] <= 0.05).any()) for seed in range(400))
    assert decided / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_an_interval_and_a_decision_agree() -> None:
    """While nothing was decided the interval holds no difference, at the look that decides it does not."""
    found = looks(0.1, 0.14, count=40)
    for plan, none in ((OPEN, 1.0), (Plan(outcome="binary", units=8000), 0.0)):
        path = course(found, plan)[0]
        first = int((path <= 0.05).argmax())
        assert path[first] <= 0.05
        before, at = (experiment(found[:last], plan) for last in (first, first + 1))
        assert before.low is None or before.low <= none
        assert at.verdict == "better"
        assert at.low is not None
        assert at.low >= none - 0.011


def test_the_guard_stops_an_experiment() -> None:
    """A challenger that is taken back ends its experiment, however good its outcome is."""
    guard = Answer(verdict="fail", reason="3.0% of 980 rows failed", e_value=41, windows=3)
    stopped = experiment(looks(0.1, 0.2), OPEN, guard)
    assert stopped.verdict == "stopped by the guard"
    assert stopped.reason.startswith("3.0% of 980 rows failed; 0.194 of 2,000 mature units")
    passed = guard.model_copy(update={"verdict": "pass"})
    assert experiment(looks(0.1, 0.2), OPEN, passed).verdict == "better"


def test_no_looks_and_empty_arms_say_nothing() -> None:
    """Before anything is mature there is an answer, and it survives JSON."""
    for plan in (OPEN, ENDING, FIGURES):
        for found in ([], [look(0, 0, 0, 0, 0)], [look(0, 50, 5, 0, 0)]):
            result = experiment(found, plan)
            assert result.verdict == "no difference yet"
            assert result.p == pytest.approx(1)
            assert Result.model_validate_json(result.model_dump_json()) == result


def test_a_number_needs_an_end_or_an_effect() -> None:
    """An open end on figures has to know what size it looks for."""
    with pytest.raises(ValidationError, match="needs units, at which it ends, or effect"):
        Plan(outcome="number")


# --- maturity -----------------------------------------------------------------------------------

DAY = timedelta(days=1)


def matured(units: list[Unit], days: float, missing: float | None = 0.0) -> list[Look]:
    """Looks by the day of units that are mature at five days."""
    return mature(units, horizon=5 * DAY, until=BEGIN + days * DAY, every=DAY, missing=missing)


def test_only_mature_units_count_and_what_is_not_known_by_then_is_missing() -> None:
    """A positive that is known early waits for its age, one that comes later than that never counts as positive."""
    units = [
        Unit(arm="challenger", began=BEGIN, outcome=1, known=BEGIN + DAY),
        Unit(arm="champion", began=BEGIN, outcome=1, known=BEGIN + 6 * DAY),
        Unit(arm="champion", began=BEGIN + 0.5 * DAY),
    ]
    assert matured(units, 5.9) == []
    (only,) = matured(units, 6)
    assert (only.challenger.n, only.challenger.total) == (1, 1)
    assert (only.champion.n, only.champion.total) == (2, 0)
    (known,) = matured(units, 6, missing=None)
    assert (known.challenger.n, known.champion.n) == (1, 0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 9), st.booleans()), max_size=30),
    st.floats(5, 30),
    st.floats(5, 30),
)
def test_a_look_never_changes(drawn: list[tuple[float, float, bool]], one: float, other: float) -> None:
    """What was mature at one time is the beginning of what is mature later, in whatever order units are given."""
    units = [
        Unit(arm="champion", began=BEGIN + began * DAY, outcome=float(hit), known=BEGIN + (began + known) * DAY)
        for began, known, hit in drawn
    ]
    before, after = matured(units, min(one, other)), matured(units[::-1], max(one, other))
    assert after[: len(before)] == before


def test_labels_that_come_earlier_for_one_arm_decide_nothing() -> None:
    """Equal rates, the challenger's positives known after two days instead of five: no look is unequal."""
    units = [
        Unit(arm=arm, began=BEGIN + day * DAY, outcome=1, known=BEGIN + (day + delay) * DAY)
        for arm, delay in (("champion", 5), ("challenger", 2))
        for day in range(20)
        for _ in range(30)
    ] + [
        Unit(arm=arm, began=BEGIN + day * DAY)
        for arm in ("champion", "challenger")
        for day in range(20)
        for _ in range(70)
    ]
    found = matured(units, 20)
    assert all(one.champion == one.challenger for one in found)
    assert experiment(found, OPEN).p == pytest.approx(1)


# --- the bandit ---------------------------------------------------------------------------------


def test_the_chance_to_be_better_is_the_posteriors() -> None:
    """It is one half for equal arms, what sampling says otherwise, and mirrored where less is better."""
    one, other = Sums(n=100, total=10), Sums(n=120, total=18)
    generator = np.random.default_rng(0)
    drawn = generator.beta(19, 103, 400_000) > generator.beta(11, 91, 400_000)
    assert bandit.chance_better(one, one) == pytest.approx(0.5, abs=1e-3)
    assert bandit.chance_better(one, other) == pytest.approx(drawn.mean(), abs=0.003)
    assert bandit.chance_better(one, other, better="lower") == pytest.approx(1 - drawn.mean(), abs=0.003)
    assert bandit.chance_better(Sums(), Sums()) == pytest.approx(0.5, abs=1e-3)


def test_the_chance_of_figures_is_normal() -> None:
    """One standard error apart it is .84; without spread or units it is sure, or one half."""
    one, other = Sums(n=100, total=0, squares=99), Sums(n=100, total=100 * np.sqrt(0.02), squares=99 + 2)
    assert bandit.chance_better(one, other, outcome="number") == pytest.approx(0.8413, abs=1e-3)
    assert bandit.chance_better(one, Sums(n=1, total=5), outcome="number") == 0.5
    flat = [Sums(n=10, total=10.0 * mean, squares=10.0 * mean**2) for mean in (1, 2)]
    assert bandit.chance_better(*flat, outcome="number") == 1


@given(st.floats(0, 1))
def test_a_weight_stays_within_its_bounds(chance: float) -> None:
    """Both arms go on being learned about, and the weight rises with the chance."""
    assert 500 <= bandit.weight(chance) <= 9500
    assert bandit.weight(min(chance + 0.1, 1)) >= bandit.weight(chance)
    assert bandit.weight(chance, least=0, most=1) == round(10_000 * chance)


def test_a_bandit_refuses_what_cannot_be() -> None:
    """More positives than units, and bounds the wrong way round, are errors that name them."""
    with pytest.raises(DataError, match="12 positives of 10 units"):
        bandit.chance_better(Sums(n=10, total=12), Sums(n=10, total=1))
    with pytest.raises(DataError, match=r"a share from 0.9 to 0.1"):
        bandit.weight(0.5, least=0.9, most=0.1)
