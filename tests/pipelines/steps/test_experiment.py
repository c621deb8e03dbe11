"""A rollout with an experiment: it stays at its first step until the declared outcome has an answer."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipelines import ledger, storage
from pipelines.audit import audit
from pipelines.cases import load_fields
from pipelines.deploy import rollout, stages
from pipelines.errors import ConflictError
from pipelines.ledger import release_rows
from pipelines.line import experiment
from pipelines.params import RolloutParams
from pipelines.provenance import wall_time
from pipelines.registry import aliases
from pipelines.settings import Settings
from pipelines.steps import tick
from tests.pipelines.candidates import CASE
from tests.pipelines.conftest import free_port
from tests.pipelines.data import loglines
from tests.pipelines.deploy.test_stages import candidate, first
from tests.pipelines.steps.test_tick import params, rows, says

HOUR = timedelta(hours=1)
OPEN_END = {"outcome": "label", "horizon_hours": 1}


def plan(**change) -> dict:
    """A rollout whose half of all keys meets the challenger until the experiment has an answer."""
    return {"steps": [0.5, 1.0], "experiment": OPEN_END | change}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A state folder as :func:`alone` makes it."""
    return alone(tmp_path, monkeypatch)


def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A state folder without services and bundles: whatever is asked answers."""
    monkeypatch.setattr(storage, "find", lambda folder, *_a, **_more: folder)
    monkeypatch.setattr(rollout, "promote", lambda _s, _f, _v, _b, append, *_a, **_more: append())
    monkeypatch.setattr(rollout, "restore", lambda *_a, **_more: None)
    monkeypatch.setattr(aliases, "project", lambda *_a: [])
    return Settings(home=tmp_path, triton_grpc=f"127.0.0.1:{free_port()}", actor="ada", log_close_seconds=0)


def begun(settings: Settings, declared: dict, *, by_hand: bool = False) -> datetime:
    """When the rollout of the second candidate was opened: ten past, as looks are whole hours of the wall clock."""
    ten = timedelta(minutes=10)
    head, now = first(settings.ledger, CASE), (wall_time() - ten).replace(minute=0, second=0, microsecond=0) + ten
    word = stages.Said(actor="ada", reason="a candidate", now=now, as_of=head.as_of)
    second = candidate(2).model_copy(update={"by_hand": by_hand})
    ledger.append(settings.ledger, stages.open_(head, second, RolloutParams.model_validate(declared), word))
    return now


def ticked(settings: Settings, declared: dict, now: datetime, verdict: str = "pass") -> tick.Tick:
    """A tick at a moment."""
    return tick.run(params(declared), settings, now=now, judge=says(verdict))


def served(settings: Settings, since: datetime, champion: float, challenger: float, units: int = 400, **how) -> None:
    """So many units of both arms in an hour, of which these shares have label 1 ten minutes later.

    ``figures``: what they come to is their revenue instead. ``split``: the challenger's share of them.
    """
    split, name = how.get("split", 0.5), f"s{since:%H%M%S}"
    answers, outcomes = [], []
    for number in range(units):
        # Spread evenly, so that every look has units of both arms.
        own = int(number * split) != int((number + 1) * split)
        place = int(number * split) if own else number - int(number * split)
        share = challenger if own else champion
        value = int(int(place * share) != int((place + 1) * share))
        at = since + timedelta(minutes=2) + HOUR * number / units
        answers.append(
            {
                "prediction_id": f"{name}-{number}",
                "request_id": "r",
                "event_time": at.isoformat(),
                "received_at": at.isoformat(),
                "version": 2 if own else 1,
                "score": 0.5,
                "prediction": 1,
                "row": {},
                "arm": "challenger" if own else "champion",
            }
        )
        known = (at + timedelta(minutes=10)).isoformat()
        outcome = {"prediction_id": f"{name}-{number}", "revision": 0, "event_time": known, "received_at": known}
        if how.get("figures"):
            outcome |= {"name": "revenue", "value": value * (1.0 + number % 3)}
        else:
            outcome |= {"label": value}
        outcomes.append(outcome)
    loglines.write(settings, CASE, "predictions", name, answers)
    loglines.write(settings, CASE, "figures" if how.get("figures") else "labels", name, outcomes)


def test_a_better_challenger_arrives_and_the_evidence_stands_in_the_row(settings):
    """Nothing is decided by units that are not mature; once they are, the better one is released, if the guard agrees.

    The row says what was compared.
    """
    declared = plan()
    began = begun(settings, declared)
    served(settings, began, 0.2, 0.5)
    early = ticked(settings, declared, began + HOUR)
    assert (early.outcome, "no difference yet" in early.reason) == ("holds", True)
    late = began + 4 * HOUR
    assert ticked(settings, declared, late, "hold").outcome == "holds"
    assert ticked(settings, declared, late).action == "promote"
    newest = ledger.head(settings.ledger, CASE)
    found = newest.trial.evidence["experiment"]
    assert (found["result"]["verdict"], found["result"]["challenger"]["n"]) == ("better", 200)
    assert (found["champion"], found["split"] > 0.5) == ({"begun": 200, "waiting": 0, "unlabelled": 0}, True)
    assert newest.reason.startswith("better: 0.5")
    assert found["result"]["low"] > 1


def test_a_worse_challenger_is_taken_back(settings):
    """It goes at once, by the clock, whatever the guard thinks of errors and latency, and does not come back."""
    declared = plan()
    began = begun(settings, declared)
    served(settings, began, 0.5, 0.2)
    found = ticked(settings, declared, began + 4 * HOUR, "hold")
    assert (found.action, found.over) == ("abort", True)
    newest = ledger.head(settings.ledger, CASE)
    assert (newest.actor, newest.champion, newest.reason.partition(":")[0]) == ("rollout", 1, "worse")


@pytest.mark.parametrize(("otherwise", "action"), [("champion", "abort"), ("challenger", "promote")])
def test_an_experiment_without_a_difference_ends_as_declared(settings, otherwise, action):
    """At the declared number of mature units the declared one stays; before, it goes on. Figures are compared alike."""
    declared = plan(outcome="revenue", units=600, otherwise=otherwise)
    began = begun(settings, declared)
    served(settings, began, 0.3, 0.3, figures=True)
    assert "400 of 600 units" in ticked(settings, declared, began + 4 * HOUR).reason
    served(settings, began + 4 * HOUR, 0.3, 0.3, figures=True)
    found = ticked(settings, declared, began + 8 * HOUR)
    assert (found.action, "ended without a difference" in found.reason) == (action, True)


def test_the_guard_and_a_person_come_first(settings):
    """A failing guard ends an experiment that is going well; while a person holds it, its answer does nothing."""
    declared = plan()
    began = begun(settings, declared)
    served(settings, began, 0.2, 0.5)
    head = ledger.head(settings.ledger, CASE)
    word = stages.Said(actor="ada", reason="wait", now=began, as_of=head.as_of)
    ledger.append(settings.ledger, stages.hold(head, word))
    assert "held: wait" in ticked(settings, declared, began + 4 * HOUR).reason
    assert ticked(settings, declared, began + 4 * HOUR, "fail").action == "abort"
    assert ledger.head(settings.ledger, CASE).actor == "guard"


def test_arms_that_are_not_split_as_declared_are_not_compared(settings):
    """Where a quarter of the units met the challenger, and not half, nothing is decided by any difference."""
    declared = plan()
    began = begun(settings, declared)
    served(settings, began, 0.2, 0.5, split=0.25)
    found = ticked(settings, declared, began + 4 * HOUR)
    assert (found.outcome, "300 and 100 units are not split as the weight says" in found.reason) == ("holds", True)


@pytest.mark.parametrize(("share", "met", "of"), [(0.01, 1, 1), (0.05, 1, 1), (0.05, 6, 20), (0.9, 0, 3)])
def test_few_units_are_no_wrong_split(settings, share, met, of):
    """The first customers may all meet one arm: that comes by chance more often than what is told."""
    declared = {"steps": [share, 1.0], "experiment": OPEN_END}
    began = begun(settings, declared)
    served(settings, began, 0.2, 0.5, units=of, split=met / of)
    found = ticked(settings, declared, began + 4 * HOUR)
    assert "not split" not in found.reason
    assert "no difference yet" in found.reason


def test_a_bandit_moves_the_weight_within_bounds_once_a_day(settings):
    """It gives the likelier arm more keys, up or down, by rows whose step stays; not before its time, and no further.

    Units of one weight are compared with each other alone.
    """
    declared = plan(bandit=True, bounds=[0.3, 0.8])
    began = begun(settings, declared)
    served(settings, began, 0.50, 0.56, units=300)
    assert ticked(settings, declared, began + 5 * HOUR).outcome == "holds"
    day = began + 25 * HOUR
    assert ticked(settings, declared, day).action == "advance"
    head = ledger.head(settings.ledger, CASE)
    assert (head.stage, head.trial.step, head.trial.since, head.weight) == ("canary", 0, day, 8000)
    assert "the bandit has it at 80% of all keys" in head.reason
    assert ticked(settings, declared, day + HOUR).outcome == "holds"
    served(settings, day, 0.70, 0.30, units=200, split=0.8)
    assert ticked(settings, declared, day + 25 * HOUR).action == "advance"
    assert [row[-1] for row in rows(settings)[1:]] == [5000, 8000, 3000]
    assert "a lower share" not in str(audit(settings, CASE)["findings"])
    chain = stages.of_trial(ledger.chain(settings.ledger, CASE), head.trial)
    now = day + 26 * HOUR
    found = experiment.compare(settings, load_fields(CASE), chain, stages.plan_of(head.trial), now)
    assert (found.challenger.begun, found.champion.begun, found.split > 0.5) == (150 + 160, 150 + 40, True)
    with pytest.raises(ConflictError, match="not within 3000 and 8000"):
        stages.weigh(ledger.head(settings.ledger, CASE), 9000, stages.Said(actor="a", reason="r", now=now, as_of=now))


def test_a_bandit_does_not_move_by_time_in_which_somebody_held_it(settings, monkeypatch):
    """Of its day the hours do not count in which a person had the rollout stand."""
    declared = plan(bandit=True)
    began = begun(settings, declared)
    served(settings, began, 0.50, 0.56, units=300)
    for hours, move in ((2, stages.hold), (22, stages.resume)):
        now = began + hours * HOUR
        monkeypatch.setattr(release_rows, "wall_time", lambda at=now: at)
        word = stages.Said(actor="ada", reason="a holiday", now=now, as_of=wall_time())
        ledger.append(settings.ledger, move(ledger.head(settings.ledger, CASE), word))
    assert ticked(settings, declared, began + 43 * HOUR).outcome == "holds"
    assert ticked(settings, declared, began + 45 * HOUR).action == "advance"


def test_a_step_takes_no_key_back_that_a_bandit_gave(settings):
    """Once its experiment is over a rollout's weights only rise: the next step begins where the bandit was, if above.

    The audit finds nothing in such a rollout.
    """
    declared = {"steps": [0.5, 0.75, 1.0], "experiment": OPEN_END | {"bandit": True}}
    began = begun(settings, declared)
    word = stages.Said(actor="rollout", reason="r", now=began, as_of=wall_time())
    for move in (lambda head: stages.weigh(head, 9000, word), lambda head: stages.advance(head, word)):
        ledger.append(settings.ledger, move(ledger.head(settings.ledger, CASE)))
    head = ledger.head(settings.ledger, CASE)
    assert (head.stage, head.trial.step, head.weight) == ("canary", 1, 9000)
    assert "a lower share" not in str(audit(settings, CASE)["findings"])
    ledger.append(settings.ledger, stages.advance(head, word))
    assert [row[-1] for row in rows(settings)[1:]] == [5000, 9000, 9000, 10_000]


def test_nothing_but_a_bandit_moves_a_weight_within_a_step(settings):
    """A rollout without one refuses: its weights only rise, step by step."""
    began = begun(settings, plan())
    word = stages.Said(actor="a", reason="r", now=began, as_of=wall_time())
    with pytest.raises(ConflictError, match="only a bandit"):
        stages.weigh(ledger.head(settings.ledger, CASE), 4000, word)


def test_an_experiment_that_ended_is_told_by_what_was_known_then(settings):
    """What comes after its last row changes nothing: the report of an old experiment stays the same."""
    declared = plan()
    began = begun(settings, declared)
    served(settings, began, 0.2, 0.5)
    end = began + 4 * HOUR
    ticked(settings, declared, end)
    chain = ledger.chain(settings.ledger, CASE)
    trial = chain[-1].trial
    mine = [row.model_copy(update={"recorded_at": end}) for row in stages.of_trial(chain, trial)]
    before = experiment.compare(settings, load_fields(CASE), mine, stages.plan_of(trial), end)
    served(settings, end, 0.9, 0.1)
    after = experiment.compare(settings, load_fields(CASE), mine, stages.plan_of(trial), end + 9 * HOUR)
    assert after == before
    assert before.result.verdict == "better"
