"""pipelines/drift/policy.py: every transition of the state machine, and the rules of one episode."""

import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import load_params
from pipelines.contracts import FeatureDrift, Interval
from pipelines.drift.policy import DriftEvidence, LabelEvidence, Mark, PolicyState, labels_needed, step

CONFIG = load_params("loans").drift
NOW = datetime(2020, 6, 10, tzinfo=UTC)
YESTERDAY, BEFORE = NOW - timedelta(days=1), NOW - timedelta(days=2)


def feature(name: str, *, drifted: bool = True, severity: str = "warn") -> FeatureDrift:
    """A feature that drifted, or not at all."""
    psi = 0.2 if drifted else 0.0
    return FeatureDrift(feature=name, psi=psi, debiased_psi=psi, ks=psi, ks_error=0.01, p_value=1.0 - drifted, drifted=drifted, severity=severity)


def seen(*features: FeatureDrift, **other) -> DriftEvidence:
    """Evidence of one window under champion 1, with labels enough for a retraining."""
    given = {"champion": 1, "training_rows": 5000, "features": features or (feature("a", drifted=False),), "fresh_labels": 5000}
    return DriftEvidence(**(given | other))


def state(name: str = "STABLE", **other) -> PolicyState:
    """A state after yesterday's window."""
    return PolicyState(**({"name": name, "champion": 1, "end": YESTERDAY, "cooldown_days": CONFIG.cooldown_days} | other))


def labels(*, errors: int = 20, low: float = -0.1) -> LabelEvidence:
    """A batch of 200 labels against a baseline of 10% errors."""
    return LabelEvidence(rows=200, errors=errors, baseline=0.1, drop=Interval(value=low + 0.05, low=low, high=low + 0.1))


DRIFTED, SEVERE = feature("a"), feature("a", severity="severe")
MARK, SEVERE_MARK = Mark(end=YESTERDAY, drifted=("a",)), Mark(end=YESTERDAY, drifted=("a",), severe=("a",))
SCORE_MARK = Mark(end=YESTERDAY, drifted=("a", "score"))
CLASS_MARK = Mark(end=YESTERDAY, drifted=("prediction",))
ARRIVED = {YESTERDAY.isoformat(): 1.0, NOW.isoformat(): 1.0}
DROPPED = labels(low=0.5)
CONFIRMED = {"episode": "loans-earlier", "marks": (SEVERE_MARK,)}
ASKED = {"episode": "loans-earlier", "retrained_at": YESTERDAY, "retrains": (YESTERDAY,)}
LONG_AGO = NOW - timedelta(days=10)

TABLE = [
    # from, evidence, to, action
    pytest.param(None, seen(), "STABLE", "none", id="first window, nothing moved"),
    pytest.param(None, seen(SEVERE), "WATCH", "none", id="first window, severe: one window confirms nothing"),
    pytest.param(state(), seen(), "STABLE", "none", id="stable stays"),
    pytest.param(state(), seen(thin=True, features=()), "STABLE", "none", id="too few rows say nothing"),
    pytest.param(state(), seen(DRIFTED), "WATCH", "none", id="one window of drift"),
    pytest.param(state(), seen(labels=DROPPED), "WATCH", "none", id="one window of drop"),
    pytest.param(state("WATCH", marks=(MARK,)), seen(DRIFTED), "WATCH", "none", id="twice, neither severe nor the score"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE), "RETRAINING", "retrain", id="twice severe, no labels"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(feature("b", severity="severe")), "WATCH", "none", id="another feature each time"),
    pytest.param(state("WATCH", marks=(SCORE_MARK,)), seen(DRIFTED, feature("score")), "RETRAINING", "retrain", id="the score twice, no labels"),
    pytest.param(state("WATCH", marks=(CLASS_MARK,)), seen(feature("prediction")), "RETRAINING", "retrain", id="the predicted classes twice, no labels"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE, labelled=ARRIVED, labels=labels()), "WATCH", "none", id="labels say it is harmless"),
    pytest.param(state("WATCH", marks=(MARK,)), seen(DRIFTED, labelled=ARRIVED, labels=DROPPED), "RETRAINING", "retrain", id="twice, and labels agree"),
    pytest.param(state("WATCH", drops=(True,)), seen(labels=DROPPED), "RETRAINING", "retrain", id="concept: two drops, inputs still"),
    pytest.param(state(), seen(labels=labels(errors=80)), "RETRAINING", "retrain", id="concept: e-CUSUM at once"),
    pytest.param(state("WATCH", clean=2), seen(), "STABLE", "none", id="three clean windows"),
    pytest.param(state("WATCH", clean=1), seen(), "WATCH", "none", id="two clean windows"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE, fresh_labels=499), "CONFIRMED", "alert", id="too few new labels"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE, fresh_labels=500), "RETRAINING", "retrain", id="just enough new labels"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,), retrains=(LONG_AGO, BEFORE)), seen(SEVERE), "CONFIRMED", "alert", id="two retrainings in a month"),
    pytest.param(state("CONFIRMED", **CONFIRMED), seen(DRIFTED), "RETRAINING", "retrain", id="confirmed, now allowed"),
    pytest.param(state("CONFIRMED", **CONFIRMED), seen(DRIFTED, fresh_labels=0), "CONFIRMED", "alert", id="confirmed, still waiting"),
    pytest.param(state("CONFIRMED", clean=2, **CONFIRMED), seen(fresh_labels=0), "STABLE", "none", id="went away before it could train"),
    pytest.param(state("CONFIRMED", **CONFIRMED), seen(DRIFTED, champion=2), "WATCH", "none", id="somebody else promoted: another reference"),
    pytest.param(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE, champion=2), "WATCH", "none", id="history belongs to one champion"),
    pytest.param(state("RETRAINING", **ASKED), seen(SEVERE, outcome="pending"), "RETRAINING", "none", id="no verdict yet"),
    pytest.param(state("RETRAINING", **ASKED), seen(outcome="promoted", champion=2), "COOLDOWN", "none", id="promoted"),
    pytest.param(state("RETRAINING", **ASKED), seen(SEVERE, outcome="kept"), "COOLDOWN", "alert", id="not promoted: a person should know"),
    pytest.param(
        state("RETRAINING", episode="e", retrained_at=NOW - timedelta(days=31)), seen(SEVERE, outcome="pending"), "WATCH", "alert", id="a run that never ended"
    ),
    pytest.param(
        state("RETRAINING", episode="e", retrained_at=NOW - timedelta(days=31)),
        seen(champion=2, outcome="promoted"),
        "STABLE",
        "none",
        id="month outlasts cooldown",
    ),
    pytest.param(state("COOLDOWN", cooldown_until=NOW + timedelta(seconds=1)), seen(SEVERE, labels=labels(errors=150)), "COOLDOWN", "none", id="cooling"),
    pytest.param(state("COOLDOWN", cooldown_until=NOW), seen(), "STABLE", "none", id="cooled"),
    pytest.param(state("COOLDOWN", cooldown_until=NOW, marks=(SEVERE_MARK,)), seen(SEVERE), "RETRAINING", "retrain", id="cooled, and still drifting"),
    *(
        pytest.param(state(name, **ASKED), seen(SEVERE, problems=("a: 9% missing",)), "BLOCKED_DATA_QUALITY", "alert", id=f"{name}: blocked")
        for name in ("STABLE", "WATCH", "CONFIRMED", "RETRAINING", "COOLDOWN", "BLOCKED_DATA_QUALITY")
    ),
    pytest.param(state("BLOCKED_DATA_QUALITY", resume="STABLE"), seen(), "STABLE", "none", id="sound again"),
    pytest.param(state("BLOCKED_DATA_QUALITY", resume="WATCH", marks=(SEVERE_MARK,)), seen(SEVERE), "RETRAINING", "retrain", id="sound again, watching"),
    pytest.param(
        state("BLOCKED_DATA_QUALITY", resume="COOLDOWN", cooldown_until=NOW + timedelta(days=1)), seen(SEVERE), "COOLDOWN", "none", id="sound again, cooling"
    ),
    pytest.param(state("BLOCKED_DATA_QUALITY", resume="RETRAINING", **ASKED), seen(outcome="pending"), "RETRAINING", "none", id="sound again, training"),
]


@pytest.mark.parametrize(("before", "evidence", "name", "action"), TABLE)
def test_transition(before, evidence, name, action):
    """From a state, one window's evidence leads to the state and action of the table."""
    after, did = step(before, evidence, CONFIG, NOW, "loans", NOW)
    assert (after.name, did) == (name, action), after.reason
    assert after.action == did
    assert after.path[-1] == name
    assert after.reason
    assert PolicyState.model_validate_json(after.model_dump_json()) == after


def run(evidences, config=CONFIG, start=None) -> list[PolicyState]:
    """The states along a series of daily windows."""
    states, current = [], start
    for number, evidence in enumerate(evidences):
        moment = NOW + timedelta(days=number)
        current, _ = step(current, evidence, config, moment, "loans", moment)
        states.append(current)
    return states


def test_an_episode_is_named_by_its_confirmation_and_retrains_once():
    """A drift that waits for labels keeps the name of the window that confirmed it, retrains once, and rests."""
    waiting, ready = seen(SEVERE, fresh_labels=0), seen(SEVERE)
    states = run([waiting, waiting, waiting, ready, *[seen(SEVERE, outcome="pending")] * 5])
    assert [one.name for one in states] == ["WATCH", "CONFIRMED", "CONFIRMED", *["RETRAINING"] * 6]
    assert [one.action for one in states].count("retrain") == 1
    assert {one.episode for one in states[1:]} == {"loans-20200611T000000Z"}


def test_cooldown_doubles_until_a_promotion():
    """Each retraining without a promotion doubles the pause, up to four weeks; a promotion brings the first one back."""
    config = CONFIG.model_copy(update={"max_retrains": 100})
    moment, current, pauses = NOW, None, []
    for _ in range(200):
        current, action = step(current, seen(SEVERE, outcome="kept"), config, moment, "loans", moment)
        if action == "retrain":
            pauses.append(moment)
        moment += timedelta(days=1)
    assert [(b - a).days for a, b in itertools.pairwise(pauses)] == [14, 28, 28, 28, 28, 28, 28]
    promoted, _ = step(state("RETRAINING", **ASKED, cooldown_days=28.0), seen(champion=2, outcome="promoted"), CONFIG, NOW, "loans", NOW)
    assert promoted.cooldown_days == CONFIG.cooldown_days
    assert promoted.cooldown_until == YESTERDAY + timedelta(days=CONFIG.cooldown_days)


def test_no_more_retrainings_than_the_budget():
    """However strong the drift, thirty days hold no more retrainings than declared."""
    config = CONFIG.model_copy(update={"cooldown_days": 0.0})
    asked = [one.end for one in run([seen(SEVERE, outcome="kept", labels=labels(errors=150))] * 40, config) if one.action == "retrain"]
    assert [(moment - NOW).days for moment in asked] == [0, 1, 30, 31]


def test_thin_windows_leave_the_history_alone():
    """A window with too few rows lies between two that drifted without pushing the first one out."""
    thin = seen(thin=True, features=())
    assert [one.name for one in run([seen(SEVERE), thin, thin, thin, seen(SEVERE)])] == [*["WATCH"] * 4, "RETRAINING"]


def test_ignored_fields_keep_no_watch():
    """A declared field that moves by construction neither drifts nor stands in the way of a clean window."""
    month = feature("month", drifted=False).model_copy(update={"debiased_psi": 17.0, "ignored": True})
    assert run([seen(DRIFTED), *[seen(month)] * 3])[-1].name == "STABLE"


def test_labels_needed_grow_with_the_training_rows():
    """A tenth of the training rows, at least 200 and at most 1,000."""
    assert [labels_needed(rows, CONFIG) for rows in (100, 5000, 100_000)] == [200, 500, 1000]


EVIDENCE = st.builds(
    seen,
    st.sampled_from([feature("a", drifted=False), DRIFTED, SEVERE, feature("score", severity="severe")]),
    champion=st.integers(1, 2),
    problems=st.sampled_from([(), (), ("a: 9% missing",)]),
    labels=st.sampled_from([LabelEvidence(), labels(), DROPPED, labels(errors=120)]),
    fresh_labels=st.sampled_from([0, 5000]),
    outcome=st.sampled_from(["none", "pending", "promoted", "kept"]),
    thin=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVIDENCE, max_size=25))
def test_whatever_happens(evidences: list[DriftEvidence]):
    """On any series: one retraining per episode, none on bad data, none beyond the budget, and the same states again."""
    states = run(evidences)
    asked = [one for one in states if one.action == "retrain"]
    assert len({one.episode for one in asked}) == len(asked)
    assert all(one.name == "RETRAINING" for one in asked)
    assert all(one.action == "alert" for one, evidence in zip(states, evidences, strict=True) if evidence.problems)
    assert len(asked) <= CONFIG.max_retrains  # the whole series lies in thirty days
    again = [PolicyState.model_validate(json.loads(one.model_dump_json())) for one in run(evidences)]
    assert again == states
