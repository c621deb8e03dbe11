"""pipelines/alerts/rules.py: what is found in a report, how bad it is, and where it says what to do."""

import re
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from pipelines.alerts import rules
from pipelines.contracts import AlertRule
from pipelines.drift_report import DriftReport, HeldBy
from pipelines.params import AlertParams
from tests.pipelines.alerts.found import DAY, NOW, PARAMS, WINDOW, facts, report

ROOT = Path(__file__).parents[3]


def find(given: rules.Facts, **declared) -> list:
    """The alerts of the loans case, with alert parameters of its own."""
    return list(
        rules.find(given, PARAMS.model_copy(update={"alerts": AlertParams(**declared)}), "https://wiki/runbooks")
    )


def rolling(days_ago: int, coverage: float, rows: int = 400) -> dict:
    """One row of the rolling metric."""
    end = WINDOW.end - days_ago * DAY
    return {"start": end - DAY, "end": end, "version": 1, "labelled": round(coverage * rows), "rows": rows}


def missing(field: str, message: str) -> dict:
    """A field with missing values."""
    return {"code": "missing_values", "field": field, "message": message}


def turned_away(field: str | None) -> dict:
    """What is said of rows that were refused."""
    return {"code": "refused", "field": field, "message": "8.0% of the rows were refused"}


POLICY = report().policy.model_dump()


def held_back(held_by: str, windows: int = 2, **other) -> DriftReport:
    """A report of a retraining that would pay in so many windows in a row, and what keeps it from being asked for."""
    found = {"code": "measured", "price": 0.02, "gain": {"value": 0.08, "low": 0.05, "high": 0.11}}
    policy = {
        "held_back": windows,
        "held_by": held_by,
        "cooldown_until": NOW + 5 * DAY,
        "retrained_at": NOW - 2 * DAY,
    }
    return report(**{"headroom": found, "policy": POLICY | policy} | other)


OPEN = {
    "state": "CONFIRMED",
    "action": "alert",
    "episode": "e1",
    "policy": {"trigger": "drift", "marks": [{"end": WINDOW.end.isoformat()}]},
}
FOUND = [
    (facts(report(**OPEN)), "drift_confirmed:e1", "warning", "episode e1 (drift) is open: nothing moved"),
    (
        facts(report(**OPEN | {"policy": OPEN["policy"] | {"trigger": "volume"}})),
        "drift_confirmed:e1",
        "info",
        "(volume)",
    ),
    (
        facts(report(state="COOLDOWN", policy=POLICY | {"verdict": "kept"})),
        "retrain_kept:e1",
        "warning",
        "gave no new champion",
    ),
    (
        facts(report(policy=POLICY | {"verdict": "missing", "path": ["RETRAINING", "COOLDOWN", "STABLE"]})),
        "retrain_missing:e1",
        "critical",
        "no verdict",
    ),
    (
        facts(report(quality={"problems": [missing("age", "age: 9.0% missing (0.0%)")]})),
        "quality_blocked:age",
        "critical",
        "age: 9.0% missing",
    ),
    (
        facts(report(quality={"problems": [{"code": "no_rows", "message": "no rows: none in the window"}]})),
        "quality_blocked:window",
        "critical",
        "no rows",
    ),
    (
        facts(report(quality={"problems": [turned_away("education")]})),
        "rows_refused:education",
        "critical",
        "8.0% of the rows",
    ),
    (facts(report(quality={"warnings": [turned_away(None)]})), "rows_refused:rows", "warning", "8.0% of the rows"),
    (
        facts(report(), skew=("artefact: 7 of 90 scores of version 3 differ", "log: and more")),
        "scores_differ:log",
        "critical",
        "do not come out again: artefact: 7 of 90 scores of version 3 differ; log: and more",
    ),
    (
        facts(report(policy=POLICY | {"alarmed": True, "log_e": 12.0})),
        "performance_dropped:champion",
        "critical",
        "e-CUSUM e^12.0",
    ),
    (
        facts(report(labels={"drop": {"value": 0.2, "low": 0.1, "high": 0.3}})),
        "performance_dropped:champion",
        "critical",
        "rose by 0.200 (0.100 to 0.300)",
    ),
    (
        facts(report(diagnosis={"performance": "dropped", "why": "it fell"})),
        "performance_dropped:champion",
        "critical",
        "it fell",
    ),
    (facts(held_back("cooldown")), "headroom_blocked:champion", "warning", "last retraining until 15 Jun 2020"),
    (
        facts(
            report(
                performance={
                    "rolling": [
                        rolling(20, 0.9),
                        rolling(14, 0.4, rows=100),
                        rolling(14, 0.1, rows=200),
                        rolling(1, 0.0),
                    ]
                }
            )
        ),
        "labels_late:coverage",
        "warning",
        "20% of the rows up to",
    ),
    (
        facts(report(labels={"drop": None, "labelled": {(WINDOW.end - 15 * DAY).isoformat(): 0.1}})),
        "labels_late:coverage",
        "warning",
        "after 15 days",
    ),
    (
        facts(report(quality={"volume": 0.1})),
        "volume_out_of_band:window",
        "warning",
        "0.1 times the reference's volume (band 0.2 to 5)",
    ),
    (facts(champion_since=NOW - 91 * DAY), "champion_old:champion", "warning", "version 3 was trained 91 days ago"),
    (facts(judged_until=WINDOW.start - 4 * DAY), "windows_unjudged:runs", "warning", "4 windows were never looked at"),
    (
        facts(report(policy=POLICY | {"marks": [{"end": (WINDOW.end - 4 * DAY).isoformat()}]})),
        "windows_unjudged:rows",
        "warning",
        "could be compared (4 windows)",
    ),
    (
        facts(report(quality={"page": "could not be drawn (RuntimeError)"})),
        "page_broken:drift.html",
        "info",
        "could not be drawn",
    ),
    (facts(page="the page of yesterday is missing"), "page_broken:report", "info", "of yesterday"),
    (facts(undelivered={"webhook": 2}), "sink_broken:webhook", "warning", "2 notices could not be sent by the webhook"),
]


@pytest.mark.parametrize(
    ("given", "key", "severity", "summary"), FOUND, ids=[case[1] + str(number) for number, case in enumerate(FOUND)]
)
def test_each_rule_finds_its_own(given, key, severity, summary):
    """What a rule is for is found by it and by no other, with its severity, an owner and its runbook's section."""
    [alert] = find(given, max_champion_days=90.0)
    assert (alert.key, alert.severity, alert.owner) == (key, severity, "ml-on-call")
    assert summary in alert.summary
    assert alert.runbook == f"https://wiki/runbooks#{alert.rule.replace('_', '-')}"


@pytest.mark.parametrize(
    "given",
    [
        facts(),
        facts(
            report(state="NO_CHAMPION", model_version=None, policy={}, labels={}, quality={}),
            champion_since=None,
            judged_until=None,
            episode=None,
        ),
        facts(held_back("cooldown", windows=1)),
        facts(held_back("cooldown", headroom={"code": "no_labels"})),
        facts(report(policy=POLICY | {"verdict": "kept"})),  # long after its cooldown
        facts(report(state="COOLDOWN", policy=POLICY | {"verdict": "promoted"})),
        facts(report(quality={"volume": 0.0}, current_rows=0)),
        facts(report(labels={"drop": {"value": 0.2, "low": -0.1, "high": 0.5}})),
        facts(report(performance={"rolling": [rolling(14, 0.5), rolling(15, 0.0, rows=0), rolling(13, 0.0)]})),
        facts(champion_since=NOW - 90 * DAY),
        facts(judged_until=WINDOW.start - 2 * DAY),
        facts(report(policy=POLICY | {"marks": []}), champion_since=WINDOW.end - 3 * DAY),
    ],
)
def test_what_is_no_reason_finds_nothing(given):
    """Quiet days, a first run, old verdicts, labels that are not due, and everything just inside its limit."""
    assert find(given, max_champion_days=90.0) == []


@pytest.mark.parametrize("held_by", get_args(HeldBy))
def test_everything_that_holds_a_retraining_back_has_its_words(held_by):
    """The alert says what the gain is, what it costs, for how long, and what keeps the loop from retraining."""
    said = {
        "trigger_off": "drift.triggers does not name headroom",
        "cooldown": "it is the cooldown after the last retraining until 15 Jun 2020",
        "labels": "too few labels are new",
        "budget": "the budget is spent (drift.max_retrains allows 2 in 30 days)",
        "verdict": "the training of 8 Jun 2020 that was asked for has no verdict yet",
        "data_quality": "the rows of this window are wrong",
    }
    [alert] = find(facts(held_back(held_by, 3)))
    assert alert.summary == (
        "a retraining would gain 0.080 nats (0.050 to 0.110), it costs 0.02, and did so in 3 windows in a row, "
        f"but none is asked for: {said[held_by]}"
    )


def test_every_rule_is_tested_and_has_a_runbook():
    """The rules are those of the contract, each has a finding above.

    Its section in docs/runbooks.md says who looks how soon and what to do.
    """
    assert [rule.name for rule in rules.RULES] == list(get_args(AlertRule))
    assert {case[1].partition(":")[0] for case in FOUND} == set(get_args(AlertRule))
    text = (ROOT / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^## ([a-z-]+)\n(.+?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for rule in rules.RULES:
        section = sections[rule.name.replace("_", "-")]
        assert rule.severity in section.splitlines()[0]
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in section, (rule.name, part)


def test_parameters_decide_severity_owner_and_whether():
    """A case may give a rule another severity and owner, and switch it off."""
    low = facts(report(quality={"volume": 0.1}))
    [alert] = find(
        low, severities={"volume_out_of_band": "critical"}, owners={"volume_out_of_band": "data"}, owner="ml"
    )
    assert (alert.severity, alert.owner) == ("critical", "data")
    assert find(low, off=("volume_out_of_band",)) == []


def test_what_is_found_in_an_episode_belongs_to_it():
    """While an episode is open all findings are of its group; a verdict belongs to the episode that it answers."""
    many = report(**OPEN | {"quality": {"volume": 0.1}, "labels": {"drop": {"value": 0.2, "low": 0.1, "high": 0.3}}})
    assert {alert.group for alert in find(facts(many))} == {"e1"}
    kept = report(state="COOLDOWN", policy=POLICY | {"verdict": "kept"}, quality={"volume": 0.1})
    assert {alert.rule: alert.group for alert in find(facts(kept, episode="e0"))} == {
        "retrain_kept": "e0",
        "volume_out_of_band": "volume_out_of_band",
    }


def test_one_field_is_one_alert():
    """Two broken fields are two alerts, so that a third one opens a third and closes none."""
    both = facts(report(quality={"problems": [missing("age", "9% missing"), missing("salary", "5% missing")]}))
    assert [alert.key for alert in find(both)] == ["quality_blocked:age", "quality_blocked:salary"]


def test_late_labels_follow_the_declared_delay():
    """Labels are late after twice the case's delay, or as long as it declares."""
    young = facts(report(performance={"rolling": [rolling(8, 0.1)]}))
    assert find(young) == []
    assert [alert.rule for alert in find(young, late_after=1.0)] == ["labels_late"]
    assert timedelta(days=PARAMS.label_delay_days) == 7 * DAY
