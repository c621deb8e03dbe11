"""pipelines/drift/policy.py: every transition of the state machine, and the rules of one episode."""

import itertools
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import FeatureDrift, Interval, Mean
from pipelines.drift.evidence import DriftEvidence, LabelEvidence, PolicyState
from pipelines.drift.labels.sequential import log_e_value
from pipelines.drift.policy import labels_needed, step, volume_needed
from pipelines.drift_report import Headroom, Mark
from pipelines.measures import around, pooled
from pipelines.params import NewData
from pipelines.params_file import load_params

CONFIG = load_params("loans").drift
NOW = datetime(2020, 6, 10, tzinfo=UTC)
YESTERDAY = NOW - timedelta(days=1)
BEFORE = NOW - timedelta(days=2)


def feature(name: str, *, drifted: bool = True, severity: str = "warn") -> FeatureDrift:
    """A feature that drifted, or not at all."""
    psi = 0.2 if drifted else 0.0
    return FeatureDrift(
        feature=name,
        psi=psi,
        debiased_psi=psi,
        ks=psi,
        ks_error=0.01,
        p_value=1.0 - drifted,
        drifted=drifted,
        severity=severity,
    )


def seen(*features: FeatureDrift, **other) -> DriftEvidence:
    """Evidence of one window under champion 1, with labels enough for a retraining."""
    given = {
        "champion": 1,
        "training_rows": 5000,
        "features": features or (feature("a", drifted=False),),
        "fresh_labels": 5000,
    }
    return DriftEvidence(**(given | other))


def state(name: str = "STABLE", **other) -> PolicyState:
    """A state after yesterday's window."""
    return PolicyState(
        **({"name": name, "champion": 1, "end": YESTERDAY, "cooldown_days": CONFIG.cooldown_days} | other)
    )


def labels(*, errors: int = 20, low: float = -0.1) -> LabelEvidence:
    """A batch of 200 labels against a baseline of 10% errors."""
    drop = Interval(value=low + 0.05, low=low, high=low + 0.1)
    return LabelEvidence(rows=200, errors=errors, baseline=0.1, drop=drop, log_e=log_e_value(errors, 200, 0.1))


DRIFTED = feature("a")
SEVERE = feature("a", severity="severe")
MARK = Mark(end=YESTERDAY, drifted=("a",))
SEVERE_MARK = Mark(end=YESTERDAY, drifted=("a",), severe=("a",))
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
    pytest.param(
        state("WATCH", marks=(MARK,)), seen(DRIFTED), "WATCH", "none", id="twice, neither severe nor the score"
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE), "RETRAINING", "retrain", id="twice severe, no labels"
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)),
        seen(feature("b", severity="severe")),
        "WATCH",
        "none",
        id="another feature each time",
    ),
    pytest.param(
        state("WATCH", marks=(SCORE_MARK,)),
        seen(DRIFTED, feature("score")),
        "RETRAINING",
        "retrain",
        id="the score twice, no labels",
    ),
    pytest.param(
        state("WATCH", marks=(CLASS_MARK,)),
        seen(feature("prediction")),
        "RETRAINING",
        "retrain",
        id="the predicted classes twice, no labels",
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)),
        seen(SEVERE, labelled=ARRIVED, labels=labels()),
        "WATCH",
        "none",
        id="labels say it is harmless",
    ),
    pytest.param(
        state("WATCH", marks=(MARK,)),
        seen(DRIFTED, labelled=ARRIVED, labels=DROPPED),
        "RETRAINING",
        "retrain",
        id="twice, and labels agree",
    ),
    pytest.param(
        state("WATCH", drops=(True,)),
        seen(labels=DROPPED),
        "RETRAINING",
        "retrain",
        id="concept: two drops, inputs still",
    ),
    pytest.param(state(), seen(labels=labels(errors=80)), "RETRAINING", "retrain", id="concept: e-CUSUM at once"),
    pytest.param(state("WATCH", clean=2), seen(), "STABLE", "none", id="three clean windows"),
    pytest.param(state("WATCH", clean=1), seen(), "WATCH", "none", id="two clean windows"),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)),
        seen(SEVERE, fresh_labels=499),
        "CONFIRMED",
        "alert",
        id="too few new labels",
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)),
        seen(SEVERE, fresh_labels=500),
        "RETRAINING",
        "retrain",
        id="just enough new labels",
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,), retrains=(LONG_AGO, BEFORE)),
        seen(SEVERE),
        "CONFIRMED",
        "alert",
        id="two retrainings in a month",
    ),
    pytest.param(state("CONFIRMED", **CONFIRMED), seen(DRIFTED), "RETRAINING", "retrain", id="confirmed, now allowed"),
    pytest.param(
        state("CONFIRMED", **CONFIRMED),
        seen(DRIFTED, fresh_labels=0),
        "CONFIRMED",
        "alert",
        id="confirmed, still waiting",
    ),
    pytest.param(
        state("CONFIRMED", clean=2, **CONFIRMED),
        seen(fresh_labels=0),
        "STABLE",
        "none",
        id="went away before it could train",
    ),
    pytest.param(
        state("CONFIRMED", **CONFIRMED),
        seen(DRIFTED, champion=2),
        "WATCH",
        "none",
        id="somebody else promoted: another reference",
    ),
    pytest.param(
        state("WATCH", marks=(SEVERE_MARK,)),
        seen(SEVERE, champion=2),
        "WATCH",
        "none",
        id="history belongs to one champion",
    ),
    pytest.param(
        state("RETRAINING", **ASKED), seen(SEVERE, outcome="pending"), "RETRAINING", "none", id="no verdict yet"
    ),
    pytest.param(state("RETRAINING", **ASKED), seen(outcome="promoted", champion=2), "COOLDOWN", "none", id="promoted"),
    pytest.param(
        state("RETRAINING", **ASKED),
        seen(SEVERE, outcome="kept"),
        "COOLDOWN",
        "alert",
        id="not promoted: a person should know",
    ),
    pytest.param(
        state("RETRAINING", episode="e", retrained_at=NOW - timedelta(days=31)),
        seen(SEVERE, outcome="pending"),
        "WATCH",
        "alert",
        id="a run that never ended",
    ),
    pytest.param(
        state("RETRAINING", episode="e", retrained_at=NOW - timedelta(days=31)),
        seen(champion=2, outcome="promoted"),
        "STABLE",
        "none",
        id="month outlasts cooldown",
    ),
    pytest.param(
        state("COOLDOWN", cooldown_until=NOW + timedelta(seconds=1)),
        seen(SEVERE, labels=labels(errors=150)),
        "COOLDOWN",
        "none",
        id="cooling",
    ),
    pytest.param(state("COOLDOWN", cooldown_until=NOW), seen(), "STABLE", "none", id="cooled"),
    pytest.param(
        state("COOLDOWN", cooldown_until=NOW, marks=(SEVERE_MARK,)),
        seen(SEVERE),
        "RETRAINING",
        "retrain",
        id="cooled, and still drifting",
    ),
    *(
        pytest.param(
            state(name, **ASKED),
            seen(SEVERE, problems=("a: 9% missing",)),
            "BLOCKED_DATA_QUALITY",
            "alert",
            id=f"{name}: blocked",
        )
        for name in ("STABLE", "WATCH", "CONFIRMED", "RETRAINING", "COOLDOWN", "BLOCKED_DATA_QUALITY")
    ),
    pytest.param(state("BLOCKED_DATA_QUALITY", resume="STABLE"), seen(), "STABLE", "none", id="sound again"),
    pytest.param(
        state("BLOCKED_DATA_QUALITY", resume="WATCH", marks=(SEVERE_MARK,)),
        seen(SEVERE),
        "RETRAINING",
        "retrain",
        id="sound again, watching",
    ),
    pytest.param(
        state("BLOCKED_DATA_QUALITY", resume="COOLDOWN", cooldown_until=NOW + timedelta(days=1)),
        seen(SEVERE),
        "COOLDOWN",
        "none",
        id="sound again, cooling",
    ),
    pytest.param(
        state("BLOCKED_DATA_QUALITY", resume="RETRAINING", **ASKED),
        seen(outcome="pending"),
        "RETRAINING",
        "none",
        id="sound again, training",
    ),
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


COLUMNS = {
    "quiet": seen(),
    "thin": seen(thin=True, features=()),
    "drifted": seen(DRIFTED),
    "severe": seen(SEVERE),
    "drop": seen(labels=DROPPED),
    "alarm": seen(labels=labels(errors=80)),
    "problem": seen(SEVERE, problems=("a: 9% missing",)),
    "champion": seen(champion=2),
    "promoted": seen(champion=2, outcome="promoted"),
    "kept": seen(outcome="kept"),
    "no labels": seen(SEVERE, fresh_labels=0),
}
ROWS = {
    "new": None,
    "STABLE": state(),
    "WATCH": state("WATCH", marks=(SEVERE_MARK,), drops=(True,)),
    "CONFIRMED": state("CONFIRMED", trigger="drift", **CONFIRMED),
    "RETRAINING": state("RETRAINING", **ASKED),
    "COOLDOWN": state("COOLDOWN", cooldown_until=NOW + timedelta(days=1)),
    "BLOCKED": state("BLOCKED_DATA_QUALITY", resume="WATCH", marks=(SEVERE_MARK,)),
}
SHORT = {"S": "STABLE", "W": "WATCH", "C": "CONFIRMED", "R": "RETRAINING", "K": "COOLDOWN", "B": "BLOCKED_DATA_QUALITY"}
ACTIONS = {"": "none", "!": "alert", "+": "retrain"}
MATRIX = """
            quiet  thin  drifted  severe  drop  alarm  problem  champion  promoted  kept  no labels
new         S      S     W        W       W     R+     B!       S         S         S     W
STABLE      S      S     W        W       W     R+     B!       S         S         S     W
WATCH       W      W     R+       R+      R+    R+     B!       S         S         W     C!
CONFIRMED   R+     R+    R+       R+      R+    R+     B!       S         S         R+    C!
RETRAINING  R      R     R        R       R     R      B!       R         K         K!    R
COOLDOWN    K      K     K        K       K     K      B!       K         K         K     K
BLOCKED     W      W     R+       R+      W     R+     B!       S         S         W     C!
"""


def cells() -> list:
    """Every cell of the matrix: a state, an evidence, and what they lead to."""
    found = []
    header, *rows = MATRIX.strip().splitlines()
    columns = re.split(r"\s{2,}", header.strip())
    for row in rows:
        name, *answers = row.split()
        assert len(answers) == len(columns)
        for column, answer in zip(columns, answers, strict=True):
            found.append(
                pytest.param(ROWS[name], COLUMNS[column], SHORT[answer[0]], ACTIONS[answer[1:]], id=f"{name}: {column}")
            )
    return found


@pytest.mark.parametrize(("before", "evidence", "name", "action"), cells())
def test_every_state_meets_every_evidence(before, evidence, name, action):
    """The whole matrix of states and kinds of evidence: no cell is left to chance."""
    after, did = step(before, evidence, CONFIG, NOW, "loans", NOW)
    assert (after.name, did) == (name, action), after.reason
    assert (after.episode is not None) == (
        name in {"CONFIRMED", "RETRAINING"}
        or (name == "BLOCKED_DATA_QUALITY" and before is not None and before.episode is not None)
    )


@pytest.mark.parametrize(
    ("before", "evidence", "trigger", "why"),
    [
        (state(), seen(labels=labels(errors=80)), "performance", "e-CUSUM"),
        (state("WATCH", drops=(True,)), seen(labels=DROPPED), "performance", "log-loss rose in 2"),
        (
            state("WATCH", marks=(MARK,)),
            seen(DRIFTED, labelled=ARRIVED, labels=DROPPED),
            "drift",
            "and the log-loss rose",
        ),
        (state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE), "drift", "moved severely"),
        (state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE, labels=labels(errors=80)), "performance", "e-CUSUM"),
    ],
)
def test_an_episode_says_what_opened_it(before, evidence, trigger, why):
    """Labels alone are the trigger performance, and come first.

    Moved inputs are drift, whether labels agree or cannot speak.
    """
    after, _ = step(before, evidence, CONFIG, NOW, "loans", NOW)
    assert (after.trigger, after.verdict) == (trigger, "none")
    assert why in after.reason


@pytest.mark.parametrize(
    ("triggers", "severe", "alarm"),
    [(("drift",), "RETRAINING", "STABLE"), (("performance",), "WATCH", "RETRAINING"), ((), "WATCH", "STABLE")],
)
def test_a_trigger_that_is_switched_off_opens_nothing(triggers, severe, alarm):
    """A case that listens to one kind of evidence only is not moved by the other."""
    config = CONFIG.model_copy(update={"triggers": triggers})
    assert step(state("WATCH", marks=(SEVERE_MARK,)), seen(SEVERE), config, NOW, "loans", NOW)[0].name == severe
    assert step(state(), seen(labels=labels(errors=80)), config, NOW, "loans", NOW)[0].name == alarm


# --- headroom -----------------------------------------------------------------------------------


def gain(value: float, se: float = 0.01, *, log_e: float = 0.0) -> dict:
    """What a probe found in a window: a gain in nats, and the log of its e-value; a retraining costs .02."""
    mean = Mean(value=value, se=se)
    other = Mean(value=0.02 - value, se=se)
    found = {"estimate": other, "own_estimate": mean, "against": "past", "log_e": log_e, "price": 0.02}
    return {"headroom": Headroom(code="measured", **found)}


def test_a_gain_above_its_price_retrains():
    """A lower end above the price opens an episode in the very window, in the words that people pay in."""
    after, action = step(state(), seen(**gain(0.08)), CONFIG, NOW, "loans", NOW)
    assert (after.trigger, after.rule, action, after.path) == (
        "headroom",
        "gain_above_price",
        "retrain",
        ("STABLE", "CONFIRMED", "RETRAINING"),
    )
    assert after.reason == "a retraining would gain 0.080 nats (0.060 to 0.100), it costs 0.02"
    assert after.would == ("headroom",)


@pytest.mark.parametrize(
    ("headroom", "name"),
    [
        (gain(0.08, 0.04), "STABLE"),
        (gain(0.2, 0.08), "STABLE"),
        (gain(0.019, 0.0001), "STABLE"),
        (gain(-0.5), "STABLE"),
        ({}, "STABLE"),
    ],
    ids=["not sure", "far above, by chance", "sure and too little", "the champion is better", "no figure"],
)
def test_a_gain_that_does_not_pay_retrains_nothing(headroom, name):
    """What is not surely above the price, or not above nothing beyond doubt, or not measured, is no reason."""
    after, action = step(state(), seen(**headroom), CONFIG, NOW, "loans", NOW)
    assert (after.name, action, after.would) == (name, "none", ())


def test_the_figure_decides_that_the_case_asked_for():
    """Held against the champion's own answers, what a probe of its time shows is no reason, and the other way round."""
    for against, name in (("past", "RETRAINING"), ("champion", "STABLE")):
        found = gain(0.08)["headroom"].model_copy(update={"against": against})
        assert step(state(), seen(headroom=found), CONFIG, NOW, "loans", NOW)[0].name == name


def test_a_champion_that_has_answered_nothing_yet_has_a_gain_all_the_same():
    """What newer rows give to a probe needs no answers of the champion."""
    found = gain(0.08)["headroom"].model_copy(update={"estimate": None})
    after = step(state(), seen(headroom=found), CONFIG, NOW, "loans", NOW)[0]
    assert (after.name, after.gains[-1].champion) == ("RETRAINING", None)


def test_two_windows_are_taken_together():
    """A gain that one window alone leaves in doubt pays by two, and an older one no longer counts."""
    doubt = gain(0.075, 0.025)
    states = run([seen(**doubt), seen(**doubt)], CONFIG)
    assert [one.name for one in states] == ["STABLE", "RETRAINING"]
    states = run([seen(**doubt), seen(**gain(0.0)), seen(**doubt)], CONFIG)
    assert states[-1].name == "STABLE"
    assert len(states[-1].gains) == 2


def test_in_a_decline_the_older_window_does_not_hold_the_newer_one_back():
    """A newest window that is sure by itself pays, though with the one before, when less was lost, it would not."""
    before, now = gain(0.01, 0.012), gain(0.06, 0.015)
    both = pooled([before["headroom"].own_estimate, now["headroom"].own_estimate])
    assert around(both, now["headroom"].confidence).low < now["headroom"].price
    states = run([seen(**before), seen(**now)], CONFIG)
    assert [one.name for one in states] == ["STABLE", "RETRAINING"]
    assert "would gain 0.060 nats" in states[-1].reason


def test_after_a_jump_the_newest_window_speaks_alone():
    """An older window that was sure of no gain does not hide the new one's, nor an old gain what has gone since."""
    states = run([seen(**gain(0.0, 0.005)), seen(**gain(0.3, 0.05))], CONFIG)
    assert [one.name for one in states] == ["STABLE", "RETRAINING"]
    assert "would gain 0.300 nats" in states[-1].reason
    first = step(state(), seen(fresh_labels=0, **gain(0.3, 0.005)), CONFIG, NOW, "loans", NOW)[0]
    assert step(first, seen(**gain(0.0, 0.05)), CONFIG, NOW, "loans", NOW)[0].name == "STABLE"


def test_a_small_gain_pays_in_the_sum_of_many_windows():
    """Windows of few rows, none of which is sure, open an episode when their e-values multiply to the threshold."""
    states = run([seen(**gain(0.04, 0.02, log_e=2.0)) for _ in range(5)], CONFIG)
    assert [one.action for one in states] == ["none"] * 4 + ["retrain"]
    assert (states[-1].rule, states[-1].trigger) == ("gain_kept_up", "headroom")
    assert "e-CUSUM e^10.0 reached 10000" in states[-1].reason
    over = step(state(gains=states[-2].gains, grown=12.0), seen(**gain(-0.1, 0.02)), CONFIG, NOW, "loans", NOW)[0]
    assert (over.name, over.grown) == ("STABLE", 12.0)  # what was once gained is no reason by itself


def test_gains_are_those_of_one_champion():
    """Under another champion, and after a retraining that was not promoted, gains are seen anew."""
    before = step(state(), seen(**gain(0.06, 0.025, log_e=5.0)), CONFIG, NOW, "loans", NOW)[0]
    assert (len(before.gains), before.grown) == (1, 5.0)
    another = step(before, seen(champion=2, **gain(0.06, 0.025)), CONFIG, NOW, "loans", NOW)[0]
    assert (another.name, len(another.gains), another.grown) == ("STABLE", 1, 0.0)
    kept = step(state("RETRAINING", gains=before.gains, grown=5.0, **ASKED), seen(outcome="kept"), CONFIG, NOW, "", NOW)
    assert (kept[0].name, kept[0].gains, kept[0].grown) == ("COOLDOWN", (), 0.0)


def test_the_window_that_learns_of_a_promotion_counts_for_the_new_champion():
    """Where windows outlast a cooldown a steady decline is answered in every one of them, not in every second."""
    asked = {"episode": "loans-earlier", "retrained_at": NOW - timedelta(days=31)}
    promoted = {"champion": 2, "outcome": "promoted"}
    after, action = step(state("RETRAINING", **asked), seen(**promoted, **gain(0.08)), CONFIG, NOW, "loans", NOW)
    assert (after.path, action) == (("RETRAINING", "COOLDOWN", "STABLE", "CONFIRMED", "RETRAINING"), "retrain")
    asked["retrained_at"] = YESTERDAY
    cooling, _ = step(state("RETRAINING", **asked), seen(**promoted, **gain(0.08)), CONFIG, NOW, "loans", NOW)
    assert (cooling.name, len(cooling.gains), cooling.held_by) == ("COOLDOWN", 1, "cooldown")


def test_a_gain_waits_for_labels_and_budget_and_goes_away_with_its_reason():
    """What pays may still not retrain: it stays open through quiet windows, until one says that it pays no more."""
    waits, action = step(state(clean=9), seen(fresh_labels=0, **gain(0.08)), CONFIG, NOW, "loans", NOW)
    assert (waits.name, action, waits.rule) == ("CONFIRMED", "alert", "waits_for_labels")
    still, action = step(waits, seen(fresh_labels=0), CONFIG, NOW, "loans", NOW)
    assert (still.name, action) == ("CONFIRMED", "alert")
    assert "a gain above its price was found earlier" in still.reason
    gone, action = step(still, seen(**gain(-0.08)), CONFIG, NOW, "loans", NOW)
    assert (gone.name, gone.episode, action) == ("STABLE", None, "none")
    assert (gone.rule, gone.path) == ("calmed", ("CONFIRMED", "STABLE"))
    assert gone.reason == "a retraining would gain -0.080 nats now, less than it costs (0.02); nothing moved"


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (state("WATCH", clean=2), "3 clean windows"),
        (state("CONFIRMED", clean=2, **CONFIRMED), "3 clean windows: the drift went away by itself"),
    ],
)
def test_what_calmed_says_why(before, why):
    """A state that returns to STABLE tells what brought it there, and not only that nothing moved in this window."""
    after, action = step(before, seen(), CONFIG, NOW, "loans", NOW)
    assert (after.name, action, after.rule) == ("STABLE", "none", "calmed")
    assert after.reason == f"{why}; nothing moved"
    later = step(after, seen(), CONFIG, NOW + timedelta(days=1), "loans", NOW + timedelta(days=1))[0]
    assert (later.rule, later.reason) == ("quiet", "nothing moved")


def test_what_each_trigger_would_have_done_stands_in_the_state():
    """Also of a trigger that the case does not listen to, and while nothing may be done; the first one names it."""
    drifted = {"labels": labels(errors=80), **gain(0.08)}
    config = CONFIG.model_copy(update={"triggers": ("drift",)})
    before = state("WATCH", marks=(SEVERE_MARK,))
    assert step(before, seen(SEVERE, **drifted), config, NOW, "loans", NOW)[0].would == (
        "performance",
        "headroom",
        "drift",
    )
    assert step(before, seen(SEVERE, **drifted), config, NOW, "loans", NOW)[0].trigger == "drift"
    assert step(before, seen(SEVERE, **drifted), CONFIG, NOW, "loans", NOW)[0].trigger == "performance"
    cooling = state("COOLDOWN", cooldown_until=NOW + timedelta(days=1))
    assert step(cooling, seen(**gain(0.08)), CONFIG, NOW, "loans", NOW)[0].would == ("headroom",)
    assert step(cooling, seen(problems=("a",), **gain(0.08)), CONFIG, NOW, "loans", NOW)[0].would == ()


PAYS = gain(0.08)
COOLING = state("COOLDOWN", cooldown_until=NOW + timedelta(days=9))


@pytest.mark.parametrize(
    ("before", "evidence", "config", "held_by"),
    [
        (COOLING, {}, {}, "cooldown"),
        (state(), {}, {"triggers": ("drift",)}, "trigger_off"),
        (COOLING, {}, {"triggers": ("drift",)}, "trigger_off"),
        (state(), {"fresh_labels": 0}, {}, "labels"),
        (state(retrains=(BEFORE, YESTERDAY)), {}, {}, "budget"),
        (state("RETRAINING", **ASKED), {"outcome": "pending"}, {}, "verdict"),
    ],
    ids=["cooldown", "trigger off", "trigger off in a cooldown", "labels", "budget", "no verdict"],
)
def test_what_holds_a_retraining_back_is_a_code_and_counted(before, evidence, config, held_by):
    """Windows in a row in which a gain pays and nothing is asked for are counted, with what is in the way."""
    states = run([seen(**PAYS, **evidence)] * 3, CONFIG.model_copy(update=config), before)
    assert [(one.held_back, one.held_by) for one in states] == [(1, held_by), (2, held_by), (3, held_by)]


def test_what_is_held_back_is_counted_in_a_row():
    """A gain that does not pay ends the count, a retraining and another champion begin it anew, no figure leaves it."""
    waits = seen(**PAYS, fresh_labels=0)

    def held(*evidences: DriftEvidence, start: PolicyState | None = None) -> list[tuple]:
        return [(one.held_back, one.held_by) for one in run(evidences, CONFIG, start)]

    assert held(waits, seen(**gain(0.0, 0.001))) == [(1, "labels"), (0, None)]
    assert held(waits, waits, seen(**PAYS)) == [(1, "labels"), (2, "labels"), (0, None)]
    assert held(waits, seen(fresh_labels=0), waits) == [(1, "labels"), (1, "labels"), (2, "labels")]
    assert held(waits, seen(problems=("a",), **PAYS), waits) == [(1, "labels"), (1, "data_quality"), (2, "labels")]
    assert held(waits, waits, seen(**PAYS, fresh_labels=0, champion=2))[-1] == (1, "labels")
    asked = state("RETRAINING", **ASKED, held_back=4)
    assert held(seen(**PAYS, outcome="kept"), seen(**PAYS), start=asked) == [(0, None), (1, "cooldown")]


def with_new_data(**declared):
    """The parameters with the volume trigger on."""
    return CONFIG.model_copy(update={"new_data": NewData(**declared)})


def test_enough_new_rows_retrain_without_drift():
    """Quiet windows open an episode when the declared number of labelled rows is new.

    The next one opens when as many more are.
    """
    config = with_new_data(rows=2000).model_copy(update={"max_retrains": 100})
    states = run([seen(fresh_labels=500 * number, outcome="kept") for number in range(60)], config)
    asked = [(one.end - NOW).days for one in states if one.action == "retrain"]
    assert asked == [4, 18, 46]  # 2,000 rows; 2,000 more come before the cooldowns, doubled to 14 and 28 days, are over
    assert {one.trigger for one in states if one.episode} == {"volume"}
    assert "2000 labelled rows are new since the champion was trained" in states[4].reason


def test_new_rows_are_counted_anew_under_another_champion():
    """What an earlier champion's retraining had seen does not count against the next one's rows."""
    before = state(tried_labels=4000)
    assert (
        step(before, seen(fresh_labels=2500, champion=2), with_new_data(rows=2000), NOW, "loans", NOW)[1] == "retrain"
    )
    assert step(before, seen(fresh_labels=2500), with_new_data(rows=2000), NOW, "loans", NOW)[1] == "none"


def test_volume_waits_for_the_budget_and_does_not_go_away():
    """An episode of new rows that may not retrain yet stays open through clean windows; one of drift closes."""
    full = {"retrains": (YESTERDAY, YESTERDAY), "clean": 9}
    config = with_new_data(share=0.5)
    assert step(state(**full), seen(), config, NOW, "loans", NOW)[0].name == "CONFIRMED"
    assert (
        step(state("CONFIRMED", episode="e", trigger="volume", **full), seen(), config, NOW, "loans", NOW)[0].name
        == "CONFIRMED"
    )
    assert (
        step(state("CONFIRMED", episode="e", trigger="drift", **full), seen(), CONFIG, NOW, "loans", NOW)[0].name
        == "STABLE"
    )


@pytest.mark.parametrize(
    ("declared", "needed"),
    [({"rows": 700}, 700), ({"share": 0.1}, 500), ({"rows": 700, "share": 0.1}, 500), ({"rows": 1, "share": 9.0}, 1)],
)
def test_the_smaller_declared_volume_counts(declared, needed):
    """Rows, a share of the champion's training rows, or the smaller one of both.

    Without a declaration there is no trigger.
    """
    assert volume_needed(5000, with_new_data(**declared)) == needed
    assert volume_needed(5000, CONFIG) is None


@pytest.mark.parametrize(
    ("outcome", "verdict"), [(one, one) for one in ("promoted", "kept", "overtaken")] + [("pending", "missing")]
)
def test_the_verdict_of_a_retraining_is_kept(outcome, verdict):
    """What became of the retraining stands in the state until the next episode opens.

    Promoted, kept, overtaken, or no verdict in time.
    """
    asked = NOW - timedelta(days=40) if outcome == "pending" else YESTERDAY
    after, _ = step(
        state("RETRAINING", episode="e", retrained_at=asked), seen(outcome=outcome), CONFIG, NOW, "loans", NOW
    )
    assert after.verdict == verdict


def test_a_person_who_releases_another_version_ends_the_episode():
    """Where another version came to serve, the policy says who did it, asks for nobody, and rests as long as ever."""
    told = "a person let version 3 serve meanwhile (release, ada: I know better)"
    after, action = step(
        state("RETRAINING", episode="e", retrained_at=YESTERDAY),
        seen(outcome="overtaken", meanwhile=told, champion=3),
        CONFIG,
        NOW,
        "loans",
        NOW,
    )
    assert (after.name, action, after.cooldown_days) == ("COOLDOWN", "none", CONFIG.cooldown_days)
    assert after.reason == f"retrained, not promoted: {told}; cooldown of {CONFIG.cooldown_days:g} days"


def run(evidences, config=CONFIG, start=None) -> list[PolicyState]:
    """The states along a series of daily windows."""
    states = []
    current = start
    for number, evidence in enumerate(evidences):
        moment = NOW + timedelta(days=number)
        current, _ = step(current, evidence, config, moment, "loans", moment)
        states.append(current)
    return states


def test_an_episode_is_named_by_its_confirmation_and_retrains_once():
    """A drift that waits for labels keeps the name of the window that confirmed it, retrains once, and rests."""
    waiting = seen(SEVERE, fresh_labels=0)
    ready = seen(SEVERE)
    states = run([waiting, waiting, waiting, ready, *[seen(SEVERE, outcome="pending")] * 5])
    assert [one.name for one in states] == ["WATCH", "CONFIRMED", "CONFIRMED", *["RETRAINING"] * 6]
    assert [one.action for one in states].count("retrain") == 1
    assert {one.episode for one in states[1:]} == {"loans-20200611T000000Z"}


def test_cooldown_doubles_until_a_promotion():
    """Each retraining without a promotion doubles the pause, up to four weeks.

    A promotion brings the first one back.
    """
    config = CONFIG.model_copy(update={"max_retrains": 100})
    moment = NOW
    current = None
    pauses = []
    for _ in range(200):
        current, action = step(current, seen(SEVERE, outcome="kept"), config, moment, "loans", moment)
        if action == "retrain":
            pauses.append(moment)
        moment += timedelta(days=1)
    assert [(b - a).days for a, b in itertools.pairwise(pauses)] == [14, 28, 28, 28, 28, 28, 28]
    promoted, _ = step(
        state("RETRAINING", **ASKED, cooldown_days=28.0),
        seen(champion=2, outcome="promoted"),
        CONFIG,
        NOW,
        "loans",
        NOW,
    )
    assert promoted.cooldown_days == CONFIG.cooldown_days
    assert promoted.cooldown_until == YESTERDAY + timedelta(days=CONFIG.cooldown_days)


def test_no_more_retrainings_than_the_budget():
    """However strong the drift, thirty days hold no more retrainings than declared."""
    config = CONFIG.model_copy(update={"cooldown_days": 0.0})
    asked = [
        one.end
        for one in run([seen(SEVERE, outcome="kept", labels=labels(errors=150))] * 40, config)
        if one.action == "retrain"
    ]
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
    """On any series: one retraining per episode, none on bad data, none beyond the budget.

    A second play gives the same states.
    """
    states = run(evidences)
    asked = [one for one in states if one.action == "retrain"]
    assert len({one.episode for one in asked}) == len(asked)
    assert all(one.name == "RETRAINING" for one in asked)
    assert all(one.action == "alert" for one, evidence in zip(states, evidences, strict=True) if evidence.problems)
    assert len(asked) <= CONFIG.max_retrains  # the whole series lies in thirty days
    again = [PolicyState.model_validate(json.loads(one.model_dump_json())) for one in run(evidences)]
    assert again == states
