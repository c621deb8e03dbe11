"""Drift while a rollout is under way: the champion is judged by its own answers, and the trial by nobody yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.contracts import Release, Trial
from pipelines.drift.evidence import PolicyState
from pipelines.drift.judge import Given, outcome
from pipelines.drift.labels import arrived
from pipelines.drift_report import State
from tests.pipelines.drift.stream import PARAMS
from tests.pipelines.drift.test_compare import found, rows

T0 = datetime(2020, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ASKED = PolicyState(name=State.RETRAINING, end=T0, champion=1, cooldown_days=7.0, retrained_at=T0 + DAY)


def test_labels_of_the_other_arm_are_not_the_champions():
    """A challenger that errs on every row leaves the champion's error rate and loss as they are."""
    baseline = {"error_rate": 0.3, "loss": 0.6, "loss_se": 0.02, "rows": 1000, "errors": 300}
    label = pl.DataFrame({"label": [1, 0] * 100, "event_time": [T0] * 200})
    champion = label.with_columns(version=pl.lit(1), score=pl.lit(0.6))
    challenger = label.with_columns(version=pl.lit(2), score=(1 - pl.col("label")).cast(pl.Float64))
    alone = arrived.judge(champion, 1, baseline, PARAMS.drift)
    assert arrived.judge(pl.concat([champion, challenger]), 1, baseline, PARAMS.drift) == alone
    assert (alone.rows, alone.errors) == (200, 100)


def test_inputs_of_both_arms_are_the_cases():
    """What comes in hangs on no arm, so that all of it is compared; only answers are told apart."""
    both = pl.concat([rows(500, size=5.0, seed=1), rows(500, size=7.0, version=2, score=0.9, seed=2)])
    features = found(both)
    assert features["size"].drifted
    assert not features["score"].drifted


def row(seq: int, action: str, days: float, challenger: int | None, trained: float = 1) -> Release:
    """A row of the rollout of a candidate that was trained so many days after T0."""
    trial = Trial(
        candidate_key="k2",
        bundle="b",
        mlflow_run=None,
        verdict_hash=None,
        trigger="drift",
        as_of=T0 + trained * DAY,
        plan={},
        step=0,
        opened=T0 + DAY,
        since=T0 + DAY,
    )
    about = {"case": "loans", "candidate_key": "k", "bundle": "b", "trigger": "drift", "reason": "r", "actor": "a"}
    more = {"mlflow_run": None, "verdict_hash": None, "recorded_at": T0, "previous_hash": "", "hash": "h"}
    stage = "full" if challenger is None else "canary"
    champion = 2 if action == "promote" else 1
    own = {"seq": seq, "champion": champion, "action": action, "as_of": T0 + days * DAY, "challenger": challenger}
    return Release(**about, **more, **own, trial=trial, stage=stage)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([row(2, "open", 1, 2)], "pending"),
        ([row(2, "open", 1, 2), row(3, "abort", 2, None)], "kept"),
        ([row(2, "open", 1, 2), row(3, "promote", 2, None)], "promoted"),
        ([row(2, "open", 1, 2), row(3, "abort", 4, None)], "pending"),
        ([row(2, "open", 0, 2, trained=0)], "pending"),
        ([row(2, "open", 0, 2, trained=0), row(3, "abort", 2, None, trained=0)], "kept"),
        ([row(2, "open", 1, 2), row(3, "open", 2, 3, trained=0)], "kept"),
    ],
)
def test_a_retraining_on_trial_is_not_decided_on(history, expected):
    """An episode's candidate is neither kept nor promoted while its rollout, or that of another one, lasts.

    As seen from before ``as_of``; one that was turned away is kept, whoever is on trial.
    """
    assert outcome(ASKED, history, [Given(T0 + DAY, "promote", "v2")], T0 + 3 * DAY) == (expected, "")
    turned_away = outcome(ASKED, [row(2, "open", 0, 2, trained=0)], [Given(T0 + DAY, "reject", "v2")], T0 + 3 * DAY)
    assert turned_away == ("kept", "")


def ordered(seq: int, action: str, days: float, champion: int, verdict: str | None = None) -> Release:
    """A row by which ada lets a version serve."""
    found = row(seq, action, days, None)
    own = {"champion": champion, "verdict_hash": verdict, "trial": None, "actor": "ada", "reason": "I know better"}
    return found.model_copy(update=own)


@pytest.mark.parametrize("decision", ["promote", "reject"])
@pytest.mark.parametrize(
    ("history", "expected", "who"),
    [
        ([ordered(2, "release", 2, 3, "of another")], "overtaken", "a person let version 3 serve"),
        ([ordered(2, "release", 0, 3)], "overtaken", "a person let version 3 serve"),
        ([ordered(2, "rollback", 2, 0)], "overtaken", "a person let version 0 serve"),
        ([row(2, "open", 1, 2), ordered(3, "release", 2, 3)], "overtaken", "a person let version 3 serve"),
        ([ordered(2, "release", 2, 2, "v2")], "promoted", "a person let version 2 serve"),
        ([row(2, "promote", 2, None, trained=0)], "overtaken", "the loop let version 2 serve"),
        ([ordered(2, "release", 0, 1)], "kept", ""),
        ([ordered(2, "release", 4, 3)], "kept", ""),
    ],
)
def test_a_version_that_a_person_releases_meanwhile_is_told(history, expected, who, decision):
    """What became of an episode's own candidate is told, and who let another version serve while it was made."""
    found = outcome(ASKED, history, [Given(T0 + DAY, decision, "v2")], T0 + 3 * DAY)
    assert (found.outcome, found.meanwhile.partition(" meanwhile")[0]) == (expected, who)
    assert ("ada: I know better" in found.meanwhile) == who.startswith("a person")


def test_nobody_has_decided_on_a_candidate_while_there_is_no_verdict_on_it():
    """A version that a person releases is no verdict on the run's own candidate, nor is a soak that it waits for."""
    assert outcome(ASKED, [ordered(2, "release", 2, 3)], [], T0 + 3 * DAY).outcome == "pending"
    soak = row(2, "promote", 1, None, trained=0).model_copy(update={"stage": "soak"})
    assert outcome(ASKED, [soak], [Given(T0 + 2 * DAY, "promote", "v3")], T0 + 3 * DAY).outcome == "pending"
