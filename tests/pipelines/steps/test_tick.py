"""pipelines/steps/tick.py: what a rollout's traffic says moves it, one row at a time, and nothing else does."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipelines import cli, ledger, storage
from pipelines.audit import audit
from pipelines.cli import rolling
from pipelines.contracts import Order
from pipelines.deploy import moves, repository, rollout, scheduler, stages
from pipelines.deploy.stages import on_trial
from pipelines.errors import ConflictError, Unavailable
from pipelines.guard.decide import decide
from pipelines.guard.evidence import Answer, Seen
from pipelines.ledger import release_rows
from pipelines.ledger import rows as rows_of_tables
from pipelines.params import RolloutParams
from pipelines.params_file import load_params
from pipelines.provenance import wall_time
from pipelines.registry import aliases
from pipelines.reports import history, metrics
from pipelines.settings import Settings
from pipelines.steps import rollback, tick
from tests.pipelines.candidates import CASE, month, registered
from tests.pipelines.conftest import free_port, fresh_processes
from tests.pipelines.data import loglines
from tests.pipelines.releases import answering, roll_out
from tests.pipelines.verbs import rollout as step

MINUTE, DAY = timedelta(minutes=1), 24 * 60


def says(verdict: str):
    """A guard that always answers the same."""

    def judge(windows: Sequence[Seen], limits: object, **_more: object) -> Answer:
        del limits
        return Answer(verdict=verdict, reason=f"a {verdict}", e_value=1.0, windows=len(windows))

    return judge


def params(plan: object = "safe"):
    """The case's parameters with a rollout in stages."""
    return load_params(CASE).model_copy(update={"rollout": RolloutParams.model_validate(plan)})


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A state folder without services: versions answer whatever is asked, and aliases are nobody's."""
    found = Settings(
        home=tmp_path,
        triton_grpc=f"127.0.0.1:{free_port()}",
        mlflow_url=f"http://127.0.0.1:{free_port()}",
        actor="ada",
        log_close_seconds=0,
    )
    for name in ("offer", "restore", "_withdraw"):
        monkeypatch.setattr(rollout, name, lambda *_a, **_more: None)
    monkeypatch.setattr(aliases, "project", lambda *_a: [])
    return found


def train(settings: Settings, number: int, plan: object = "safe", champion: int | None = 1):
    """The facts of the rollout step of the n-th candidate; the first one becomes champion at once."""
    own = None if number == 1 else champion
    run_dir = registered(settings, month(number), number, bias=number / 10, champion=own)
    return step.run(params(plan), settings, run_dir, month(number)).facts


def ticked(settings: Settings, minutes: float, verdict: str = "pass", plan: object = "safe", of: int | None = 2):
    """A tick so many minutes from now."""
    now = wall_time() + minutes * MINUTE
    as_of = None if of is None else month(of)
    return tick.run(params(plan), settings, as_of=as_of, now=now, judge=says(verdict))


def rows(settings: Settings) -> list[tuple[str, int, int | None, str, int]]:
    """The case's rows in short: what was done, who serves, who is on trial, stage and weight."""
    chain = ledger.chain(settings.ledger, CASE)
    return [(row.action, row.champion, row.challenger, row.stage, row.weight) for row in chain]


def test_a_good_candidate_arrives_by_itself(settings):
    """The first champion serves at once; the next one goes from 5% to 50% to all, each when its time is up.

    Ticks in between write nothing, and what the guard said stands in each row.
    """
    assert train(settings, 1) == {"outcome": "promoted", "version": 1, "seq": 1}
    made = train(settings, 2)
    key = ledger.head(settings.ledger, CASE).trial.candidate_key
    assert made == {"outcome": "opened", "version": 2, "seq": 2, "candidate": key}
    assert [ticked(settings, minutes).outcome for minutes in (1, 29)] == ["holds", "holds"]
    assert ticked(settings, 31, "hold").outcome == "holds"
    first = ticked(settings, 31)
    assert (first.outcome, first.action, first.over) == ("moved", "advance", False)
    assert [ticked(settings, minutes).outcome for minutes in (32, 90)] == ["holds", "holds"]
    last = ticked(settings, 92)
    assert (last.action, last.over) == ("promote", True)
    assert ticked(settings, 93).over
    assert rows(settings) == [
        ("promote", 1, None, "full", 10_000),
        ("open", 1, 2, "canary", 500),
        ("advance", 1, 2, "canary", 5_000),
        ("promote", 2, None, "full", 10_000),
    ]
    newest = ledger.head(settings.ledger, CASE)
    assert (newest.trial.evidence["verdict"], newest.reason, newest.actor) == ("pass", "a pass", "rollout")
    assert len(newest.trial.evidence_hash) == 64
    assert len({row.salt for row in ledger.chain(settings.ledger, CASE)[1:]}) == 1
    assert [row.champion for row in ledger.releases(settings.ledger, CASE)] == [1, 2]
    assert newest.trained == month(2)
    assert audit(settings, CASE)["findings"] == []


def test_a_bad_candidate_is_taken_back_and_stays_away(settings, caplog):
    """A failing guard ends the rollout at once, in any stage; people are told once, and running again opens nothing."""
    train(settings, 1)
    train(settings, 2)
    found = ticked(settings, 6, "fail")
    assert (found.action, found.over) == ("abort", True)
    for _ in range(2):
        assert ticked(settings, 7, "fail").over
    newest = ledger.head(settings.ledger, CASE)
    assert (newest.action, newest.champion, newest.contender, newest.stage) == ("abort", 1, None, "full")
    assert (newest.reason, newest.actor, newest.trial.evidence["verdict"]) == ("a fail", "guard", "fail")
    told = [row["event"] for row in ledger.deliveries(settings.ledger, CASE)]
    assert told == ["claimed", "delivered"]
    assert "the guard took back a version on trial: a fail" in caplog.text
    run_dir = settings.run_dir(CASE, month(2))
    (run_dir / "rollout").rename(run_dir / "lost")
    again = step.run(params(), settings, run_dir, month(2)).facts
    assert again == {"outcome": "aborted", "version": 2, "seq": 2}
    assert len(rows(settings)) == 3
    assert audit(settings, CASE)["findings"] == []


def test_a_candidate_waits_for_its_turn(settings):
    """While another one is on trial there is no row of it; its tick moves the other, and opens it when that is gone."""
    train(settings, 1)
    train(settings, 2)
    made = train(settings, 3)
    assert (made["outcome"], made["seq"]) == ("waits", None)
    found = ticked(settings, 5, of=3)
    assert (found.outcome, found.over) == ("holds", False)
    assert ticked(settings, 6, "fail", of=3).action == "abort"
    assert ticked(settings, 7, of=3).action == "open"
    assert ticked(settings, 8, of=2).over
    assert rows(settings)[-1] == ("open", 1, 3, "canary", 500)


def test_people_hear_of_a_version_that_was_taken_back_though_the_next_one_is_on_trial_already(settings, caplog):
    """A tick dies after the guard's row, and the next candidate's tick comes first: it opens that one, and tells."""
    for number in (1, 2, 3):
        train(settings, number)
    head = ledger.head(settings.ledger, CASE)
    ledger.append(settings.ledger, stages.abort(head, moves.said(params(), head, actor="guard", reason="it is slow")))
    assert ticked(settings, 7, of=3).action == "open"
    assert "the guard took back a version on trial: it is slow" in caplog.text
    for _ in range(2):
        assert not ticked(settings, 8, of=3).over
    assert [row["event"] for row in ledger.deliveries(settings.ledger, CASE)] == ["claimed", "delivered"]


def test_a_candidate_that_waited_too_long_is_stale(settings):
    """A candidate was judged against a champion: once the other one has taken that place, it is over."""
    train(settings, 1)
    train(settings, 2)
    train(settings, 3)
    for minutes in (31, 92):
        ticked(settings, minutes)
    found = ticked(settings, 93, of=3)
    assert (found.over, "stale" in found.reason) == (True, True)
    assert ledger.head(settings.ledger, CASE).champion == 2


def test_a_candidate_takes_the_place_of_another_one(settings):
    """By the policy `replace` one row ends the rollout that is under way and begins the next one."""
    train(settings, 1)
    train(settings, 2)
    assert train(settings, 3, {"preset": "safe", "meanwhile": "replace"})["outcome"] == "opened"
    newest = ledger.head(settings.ledger, CASE)
    assert (newest.action, newest.challenger, newest.reason) == (
        "open",
        3,
        "in the place of version 2: lift of 0.3",
    )
    assert ticked(settings, 1, of=2).over
    assert not ticked(settings, 1, of=3).over


def test_a_soak_is_watched(settings):
    """With a soak the new champion is taken back by a failing guard; where nothing is found, the soak is settled."""
    plan = {"soak_minutes": 10}
    train(settings, 1)
    assert train(settings, 2, plan)["outcome"] == "promoted"
    assert rows(settings)[-1] == ("promote", 2, None, "soak", 10_000)
    assert (ticked(settings, 5, plan=plan).outcome, ticked(settings, 5, plan=plan).over) == ("holds", False)
    assert ticked(settings, 6, "fail", plan=plan).action == "rollback"
    newest = ledger.head(settings.ledger, CASE)
    assert (newest.champion, newest.stage, newest.actor) == (1, "full", "guard")
    assert train(settings, 3, plan)["outcome"] == "promoted"
    assert on_trial(ledger.head(settings.ledger, CASE)) == 3
    settled = ticked(settings, 11, of=3, plan=plan)
    assert (settled.action, settled.over) == ("settle", True)
    assert rows(settings)[-1] == ("settle", 3, None, "full", 10_000)
    assert audit(settings, CASE)["findings"] == []


def test_shadow_waits_for_rows(settings):
    """In shadow a challenger answers nobody, until it has answered the declared rows beside the champion."""
    plan = {"preset": "careful", "shadow": {"rows": 3}}
    train(settings, 1)
    train(settings, 2, plan)
    assert rows(settings)[-1] == ("open", 1, 2, "shadow", 0)
    opened = ledger.head(settings.ledger, CASE).trial.opened
    assert "0 of 3 rows" in ticked(settings, 1, plan=plan).reason
    _mirror(settings, opened + MINUTE, 3)
    assert ticked(settings, 2, plan=plan).action == "advance"
    assert rows(settings)[-1] == ("advance", 1, 2, "canary", 500)


def _mirror(settings: Settings, at: datetime, count: int, first: int = 0) -> None:
    """Rows that both versions answered, which they decide differently."""
    lines = [
        {
            "prediction_id": f"p{first + number}",
            "event_time": at.isoformat(),
            "received_at": at.isoformat(),
            "arm": "champion",
            "champion": 1,
            "challenger": 2,
            "champion_score": 0.4,
            "challenger_score": 0.6,
            "ms": 3.0,
        }
        for number in range(count)
    ]
    loglines.write(settings, CASE, "shadow", f"shadow-{first}", lines)


def _count(settings: Settings, name: str, begin: datetime, arm: str, version: int, **outcomes: int) -> None:
    """A line of counts of ten seconds."""
    line = {
        "begin": begin.isoformat(),
        "end": (begin + timedelta(seconds=10)).isoformat(),
        "arm": arm,
        "version": version,
        "requests": sum(outcomes.values()),
        "outcomes": outcomes,
        "latency": {"12": sum(outcomes.values())},
        "scores": {"4": outcomes.get("ok", 0)},
    }
    loglines.write(settings, CASE, "traffic", name, [line])


def test_the_guard_sees_what_was_logged(settings):
    """Counts, mirrored rows and labels of a rollout come to the guard by windows, and twice the same; by them it fails.

    A line counts where it ends, and only windows that are over are looked at.
    """
    train(settings, 1)
    train(settings, 2)
    opened = ledger.head(settings.ledger, CASE).trial.opened
    for number in range(3):
        begin = opened + number * 5 * MINUTE + timedelta(seconds=291)
        _count(settings, f"a-{number}", begin, "champion", 1, ok=950)
        _count(settings, f"b-{number}", begin, "challenger", 2, ok=200, fallback=50, error=100)
    _mirror(settings, opened + 6 * MINUTE, 4)
    label = {"prediction_id": "p1", "label": 0, "revision": 0, "event_time": opened.isoformat()}
    loglines.write(settings, CASE, "labels", "l", [{**label, "received_at": (opened + 11 * MINUTE).isoformat()}])
    looked: list[Sequence[Seen]] = []

    def judge(windows: Sequence[Seen], limits, **more) -> Answer:
        looked.append(windows)
        return says("hold")(windows, limits, **more)

    for _ in range(2):
        tick.run(params(), settings, as_of=month(2), now=opened + 12 * MINUTE, judge=judge)
    assert looked[0] == looked[1]
    # The first line ends a second after its window: it is of the second one.
    assert [(one.champion.answered, one.challenger.failed) for one in looked[0]] == [(0, 0), (950, 150)]
    assert [one.mirrored.disagreed for one in looked[0]] == [0, 4]
    tick.run(params(), settings, as_of=month(2), now=opened + 15 * MINUTE + timedelta(seconds=7), judge=judge)
    [_, _, third] = looked[-1]
    assert third.losses == pytest.approx([0.405465], abs=1e-5)
    assert (third.weight, third.challenger.latency, third.challenger.scores) == (500, {12: 350}, {4: 200})
    found = tick.run(params(), settings, as_of=month(2), now=opened + 16 * MINUTE, judge=decide)
    assert found.action == "abort"
    assert "challenger" in found.reason or "failed" in found.reason


def test_a_retired_case_has_no_rollout_that_moves(settings):
    """A tick of a case that is out of service writes nothing, whatever the guard says; without a release it is over.

    Taken back into service the case has its rollout and the candidate that waits, so ticks must go on until then.
    """
    assert ticked(settings, 1, of=None).over
    for number in (1, 2, 3):
        train(settings, number)
    ledger.set_retired(settings.ledger, CASE, retired=True, reason="a break", actor="ada")
    for of in (None, 2, 3):
        found = ticked(settings, 31, "fail", of=of)
        assert (found.over, found.outcome, "a break" in found.reason) == (False, "none", True)
    assert len(rows(settings)) == 2
    ledger.set_retired(settings.ledger, CASE, retired=False, reason="back", actor="ada")
    assert ticked(settings, 32, "fail", of=2).action == "abort"
    ledger.set_retired(settings.ledger, CASE, retired=True, reason="for good", actor="ada")
    assert [ticked(settings, 33, of=of).over for of in (None, 2, 3)] == [True, True, False]


@pytest.fixture
def later(monkeypatch):
    """Lets so many minutes pass for who writes into the ledger, and looks at the clock of a person."""
    passed = [0.0]
    for module in (release_rows, rows_of_tables, moves, rolling):
        monkeypatch.setattr(module, "wall_time", lambda: wall_time() + passed[0] * MINUTE)

    def wait(minutes: float) -> None:
        passed[0] += minutes

    return wait


def test_a_stage_does_not_last_while_somebody_holds_it(settings, order, later):
    """After a hold of a day a stage lasts as much longer as was left of it, and nobody is told that it is stuck."""
    train(settings, 1)
    train(settings, 2)
    later(20)
    order("hold", "a holiday")
    later(10 * DAY)
    assert order("status")[1]["minutes"] == pytest.approx(20, abs=1)
    order("resume", "back")
    assert order("status")[1]["minutes"] == pytest.approx(20, abs=1)
    for verdict, minutes in (("pass", 1), ("pass", 9), ("hold", 24 * 60)):
        assert ticked(settings, 20 + 10 * DAY + minutes, verdict).outcome == "holds"
    assert ledger.deliveries(settings.ledger, CASE) == []
    later(5)
    order("hold", "once more")
    later(DAY)
    order("resume", "back again")
    assert ticked(settings, 25 + 11 * DAY + 4).outcome == "holds"
    assert ticked(settings, 25 + 11 * DAY + 6).action == "advance"


def test_a_stage_does_not_last_while_its_case_is_retired(settings, order, later):
    """Nobody is answered in a retired case: taken back, its stage lasts as much longer as was left of it.

    Time in which somebody held it, too, counts once.
    """
    train(settings, 1)
    train(settings, 2)
    later(20)
    for hold, retired in ((False, True), (True, False), (False, True), (False, False)):
        if hold:
            ledger.set_retired(settings.ledger, CASE, retired=False, reason="back", actor="ada")
            assert order("hold", "a holiday")[0] == 0
        else:
            ledger.set_retired(settings.ledger, CASE, retired=retired, reason="a break", actor="ada")
        later(DAY)
    assert order("resume", "back")[0] == 0
    assert ticked(settings, 20 + 4 * DAY + 9).outcome == "holds"
    assert ticked(settings, 20 + 4 * DAY + 11).action == "advance"


def test_people_hear_of_a_rollout_that_does_not_move(settings, caplog):
    """A stage that lasts five times what it has to and a day more is told once; one that somebody holds is not."""
    train(settings, 1)
    train(settings, 2)
    assert ticked(settings, 5 * 30 + 24 * 60 - 1, "hold").outcome == "holds"
    assert ledger.deliveries(settings.ledger, CASE) == []
    for more in (5, 9):
        ticked(settings, 5 * 30 + 24 * 60 + more, "hold")
    assert [row["event"] for row in ledger.deliveries(settings.ledger, CASE)] == ["claimed", "delivered"]
    assert "is in its stage canary since" in caplog.text


def test_a_version_that_does_not_answer_gets_no_more_traffic(settings, monkeypatch):
    """Before a weight is raised the challenger must answer in Triton: else there is no row, and the error says why."""
    train(settings, 1)
    train(settings, 2)

    def away(*_a, **_more):
        raise Unavailable("Triton has no answer from bank version 2")

    monkeypatch.setattr(rollout, "offer", away)
    with pytest.raises(Unavailable, match="no answer from bank version 2"):
        ticked(settings, 31)
    assert ticked(settings, 32, "fail").action == "abort"


@pytest.fixture
def order(settings, monkeypatch, capfd):
    """`python -m pipelines rollout VERB` as a person types it: the exit code, and the answer or the error."""
    monkeypatch.setenv("PERENNIAL_HOME", str(settings.home))
    monkeypatch.setenv("PERENNIAL_ACTOR", "eve")

    def typed(verb: str, *reason: str):
        code = cli.main(["rollout", verb, "--case", CASE, *(("--reason", *reason) if reason else ())])
        out, err = capfd.readouterr()
        return code, json.loads(out) if code == 0 else err.splitlines()[-1]

    return typed


def test_people_move_a_rollout(settings, order):
    """A person looks, holds (the clock stands, the guard goes on), resumes, and goes on at once, each with a reason."""
    train(settings, 1)
    code, said = order("abort", "too early")
    assert (code, "no rollout is under way" in said) == (1, True)
    train(settings, 2)
    code, said = order("hold")
    assert (code, "needs a reason" in said) == (2, True)
    assert order("hold", "a holiday")[1]["held"] == "a holiday"
    assert "held: a holiday" in ticked(settings, 31).reason
    assert order("hold", "another one")[0] == 1
    assert order("resume", "back")[1]["held"] == ""
    code, said = order("advance", "it looks good")
    assert (code, said["share"], said["stage"], said["lasts"]) == (0, 0.5, "canary", {"minutes": 60.0, "rows": 0})
    assert [(row["action"], row["who"], row["why"]) for row in said["rows"]][1:] == [
        ("hold", "eve", "a holiday"),
        ("resume", "eve", "back"),
        ("advance", "eve", "it looks good"),
    ]
    order("hold", "a holiday")
    assert ticked(settings, 5, "fail").action == "abort"
    code, said = order("status")
    assert (code, said["underway"], said["champion"], said["rows"][-1]["action"]) == (0, False, 1, "abort")


def test_a_person_sees_that_a_retired_case_moves_nothing(settings, order):
    """`rollout status` of a case that is out of service says so: nobody is answered, whatever its newest row is."""
    train(settings, 1)
    train(settings, 2)
    ledger.set_retired(settings.ledger, CASE, retired=True, reason="a break", actor="ada")
    says = order("status")[1]["says"]
    assert "is retired since" in says
    assert says.endswith("version 2 on trial beside version 1 answers 5.00%")
    assert order("advance", "go")[0] == 1


@pytest.mark.parametrize("paused", [True, False])
def test_a_person_hears_that_nobody_moves_a_rollout(settings, monkeypatch, caplog, paused):
    """A rollout that is started by hand asks Airflow for ticks; where the DAG is paused none come, which is told."""
    train(settings, 1)
    registered(settings, month(2), 2, bias=0.2, champion=1)
    asked = []
    airflow = SimpleNamespace(
        trigger_dag=lambda dag, run, *_a, **_more: asked.append((dag, run)), paused=lambda _dag: paused
    )
    monkeypatch.setattr(scheduler, "client", lambda _settings: airflow)
    rolling.run(params(), settings, "start", "by hand", version=2)
    assert asked == [(f"{CASE}_rollout", "row__2")]
    assert (f"{CASE}_rollout is paused" in caplog.text) == paused


def test_a_preset_by_hand_gives_the_stages_alone(settings):
    """What else the case declares stays: whose keys keep their arm, what the guard allows, the mirror and the soak.

    Its experiment does not: a person who names stages has no question to be answered in them.
    """
    declared = {
        "steps": [0.5, 1.0],
        "hold": {"minutes": 3},
        "shadow": {"rows": 5},
        "key": "job",
        "mirror": True,
        "soak_minutes": 7,
        "guard": {"errors": 0.2, "loss": None},
        "experiment": {"outcome": "label", "horizon_hours": 1},
    }
    train(settings, 1)
    train(settings, 2, declared)
    rolling.run(params(declared), settings, "abort", "later")
    rolling.run(params(declared), settings, "start", "again", version=2, preset="safe")
    plan = stages.plan_of(ledger.head(settings.ledger, CASE).trial)
    safe = RolloutParams(preset="safe")
    assert (plan.preset, plan.shadow, plan.steps, plan.hold) == ("safe", None, safe.steps, safe.hold)
    assert (plan.key, plan.mirror, plan.soak_minutes, plan.experiment) == ("job", True, 7, None)
    assert (plan.guard.errors, plan.guard.loss) == (0.2, None)
    rolling.run(params(declared), settings, "abort", "later")
    bare = {"guard": None}
    rolling.run(params(bare), settings, "start", "again", version=2, preset="careful")
    assert stages.plan_of(ledger.head(settings.ledger, CASE).trial) == RolloutParams(preset="careful")


def test_people_end_a_rollout(settings, order, monkeypatch):
    """`abort` gives the champion all its keys back; nobody goes on to a version that does not answer."""
    train(settings, 1)
    train(settings, 2)
    with monkeypatch.context() as patch:

        def away(*_a, **_more):
            raise Unavailable("Triton has no answer from bank version 2")

        patch.setattr(rollout, "offer", away)
        assert order("advance", "go")[0] == 1
    assert rows(settings)[-1] == ("open", 1, 2, "canary", 500)
    assert order("abort", "complaints")[1]["says"] == "no rollout is under way"
    assert rows(settings)[-1] == ("abort", 1, None, "full", 10_000)
    assert ledger.deliveries(settings.ledger, CASE) == []
    assert ticked(settings, 1).over


def test_a_rollback_ends_a_rollout(settings, monkeypatch):
    """While a version is on trial a rollback gives the champion's predecessor back, and the trial is over for good."""
    train(settings, 1)
    train(settings, 2, "instant")
    train(settings, 3, champion=2)
    monkeypatch.setattr(rollback, "load_fields", lambda _case: None)
    with pytest.raises(ConflictError, match=r"not version 3; version 3 on trial .* `rollout abort` ends that"):
        rollback.run(params(), settings, reason="bad", actor="ada", from_version=3)
    answer = rollback.run(params(), settings, reason="bad", actor="ada")
    assert (answer.serves, rows(settings)[-1]) == (1, ("rollback", 1, None, "full", 10_000))
    found = ticked(settings, 1, of=3)
    assert (found.over, "aborted" in found.reason) == (True, True)


def test_rows_of_earlier_releases_keep_their_hashes(settings):
    """A ledger that was written before there were rollouts is read as it is: nothing new enters its rows."""
    own = {"case": CASE, "champion": 1, "candidate_key": "k", "bundle": "b", "trigger": "manual"}
    row = ledger.append(settings.ledger, Order(**own, after=0, action="promote", reason="r", actor="a", as_of=month(1)))
    written = row.model_dump(mode="json")
    names = "action actor as_of bundle candidate_key case challenger champion hash mlflow_run previous_hash reason"
    assert sorted(written) == sorted(f"{names} recorded_at salt seq stage trigger verdict_hash weight".split())
    del written["hash"]
    assert storage.digest(written) == row.hash


def test_what_people_see_of_a_rollout(settings):
    """History, metrics and MLflow's aliases tell stage, share and version on trial, until the rollout is over."""
    train(settings, 1)
    train(settings, 2)

    def seen() -> dict[str, float]:
        found = metrics.samples(settings, params())
        return {"/".join([name, *labels.values()]): value for name, labels, value in found if "rollout" in name}

    assert seen() == {
        **{f"rollout_stage/{stage}": stage == "canary" for stage in ("shadow", "canary", "soak", "full")},
        **{
            f"rollout_moves/{move}": move == "open" for move in ("open", "advance", "hold", "resume", "abort", "settle")
        },
        "rollout_version": 2,
        "rollout_weight": 0.05,
        "rollout_e_value": 0.0,
    }
    assert aliases._wanted(settings, None, CASE) == {"champion": 1, "previous": None, "challenger": 2}
    ticked(settings, 6, "fail")
    assert (seen()["rollout_stage/full"], seen()["rollout_version"], seen()["rollout_weight"]) == (True, 0, 0.0)
    assert seen()["rollout_moves/abort"] == 1
    console = Console(file=io.StringIO(), width=200)
    console.print(history.table(CASE, history.releases(settings, CASE), history.verdicts(settings, CASE)))
    lines = console.file.getvalue().splitlines()[2:]
    assert [re.split(r"\s{2,}", line)[2:4] for line in lines] == [
        ["v1", "promote"],
        ["v1 + v2 5%", "open"],
        ["v1", "abort"],
    ]
    assert "a fail" in lines[2]


def test_a_small_share_is_not_told_as_none(settings):
    """Half a percent of all keys is no 0%: neither in the history nor in the status."""
    train(settings, 1)
    train(settings, 2, {"steps": [0.005, 1.0]})
    drawn = io.StringIO()
    console = Console(file=drawn, width=200)
    console.print(history.table(CASE, history.releases(settings, CASE), history.verdicts(settings, CASE)))
    assert "v1 + v2 0.5%" in drawn.getvalue()
    console.print(rolling.table(rolling.status(params(), settings)))
    assert " 0.5%" in drawn.getvalue().partition("rollout of")[2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weight": 100}, "a lower share than the row before it"),
        ({"salt": "another"}, "other keys"),
        ({"champion": 2}, "lets another version serve"),
    ],
)
def test_the_audit_finds_rows_that_no_rollout_has(settings, change, problem):
    """A row that takes keys away, shuffles them or lets a version serve on the side is found."""
    train(settings, 1)
    train(settings, 2)
    head = ledger.head(settings.ledger, CASE)
    good = stages.advance(head, moves.said(params(), head, actor="eve", reason="quietly"))
    ledger.append(settings.ledger, good.model_copy(update=change))
    [found, *_] = audit(settings, CASE)["findings"]
    assert problem in found["problem"]


def test_the_audit_wants_a_verdict_for_a_trial(settings):
    """A version that no verdict promoted is not on trial by rights."""
    train(settings, 1)
    train(settings, 2)
    head = ledger.head(settings.ledger, CASE)
    stranger = head.trial.model_dump(include={"bundle", "mlflow_run", "trigger", "as_of"})
    other = stages.Candidate(**stranger, version=9, candidate_key=head.trial.candidate_key, verdict_hash=None)
    ledger.append(settings.ledger, moves.opening(params(), head, other, actor="eve"))
    problems = [found["problem"] for found in audit(settings, CASE)["findings"]]
    assert "lets version 9 on trial without a verdict that promotes it" in problems


# --- two at once, and death at every point ---------------------------------------------------------------


def _tick(settings: Settings, minutes: float, verdict: str, point: str = "", queue=None) -> None:
    """One tick in a process of its own, which may die at a point."""
    os.environ["PERENNIAL_FAILPOINT"] = point
    now = ledger.head(settings.ledger, CASE).trial.opened + minutes * MINUTE
    answer = tick.run(params(), settings, as_of=month(2), now=now, judge=says(verdict))
    if queue is not None:
        queue.put((answer.outcome, answer.action))


def _killed(settings: Settings, minutes: float, verdict: str, point: str) -> None:
    process = fresh_processes().Process(target=_tick, args=(settings, minutes, verdict, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, point


@pytest.fixture
def home(request, released):
    """A state folder beside a real Triton, its ledger in SQLite or PostgreSQL."""
    if request.param == "postgresql":
        released = released.model_copy(update={"ledger_url": request.getfixturevalue("schema")})
    return released.model_copy(update={"log_close_seconds": 0})


def _dying(settings: Settings, run_dir, point: str) -> None:
    os.environ["PERENNIAL_FAILPOINT"] = f"rollout:{point}"
    step.run(params(), settings, run_dir, month(2))


@pytest.mark.slow
def test_an_opening_that_is_killed_is_repeated(released):
    """The training's last step dies on the way to the first row, or after it: run again it has opened one rollout."""
    roll_out(released, 1, registered(released, month(1), 1, bias=0.1))
    run_dir = registered(released, month(2), 2, bias=0.2, champion=1)
    for point in ("loaded", "appended"):
        process = fresh_processes().Process(target=_dying, args=(released, run_dir, point))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert answering(released, 1) == [1]
    made = step.run(params(), released, run_dir, month(2)).facts
    assert (made["outcome"], made["seq"]) == ("opened", 2)
    assert [row[0] for row in rows(released)] == ["promote", "open"]
    assert answering(released, 1, 2) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("home", "points"),
    [
        ("sqlite", ("tick:judged", "rollout:staged", "rollout:loaded", "rollout:appended")),
        pytest.param("postgresql", ("tick:judged", "rollout:appended"), marks=pytest.mark.long),
    ],
    indirect=["home"],
)
def test_ticks_that_are_killed_are_repeated(home, points):
    """Killed between evidence and row, on the way to the row and after it, the next tick goes on to the same rows.

    The champion answers all the while.
    """
    roll_out(home, 1, registered(home, month(1), 1, bias=0.1))
    run_dir = registered(home, month(2), 2, bias=0.2, champion=1)
    step.run(params(), home, run_dir, month(2))
    assert answering(home, 1, 2) == [1, 2]
    for point in points:
        assert [row[0] for row in rows(home)] == ["promote", "open"]
        _killed(home, 31, "pass", point)
        assert answering(home, 1) == [1]
    assert ticked(home, 32).outcome == "holds"
    _killed(home, 92, "pass", "tick:projected")
    assert [row[0] for row in rows(home)] == ["promote", "open", "advance", "promote"]
    assert ticked(home, 93).over
    assert len(rows(home)) == 4
    assert answering(home, 1, 2) == [1, 2]
    assert repository.configured(home.model_repository, CASE) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("home", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=["home"])
def test_a_killed_abort_is_told_all_the_same(home):
    """A tick that dies after it took a version back has told nobody: the next one does, once."""
    roll_out(home, 1, registered(home, month(1), 1, bias=0.1))
    step.run(params(), home, registered(home, month(2), 2, bias=0.2, champion=1), month(2))
    _killed(home, 6, "fail", "tick:appended")
    assert (rows(home)[-1][0], ledger.deliveries(home.ledger, CASE)) == ("abort", [])
    for _ in range(2):
        assert ticked(home, 7, "pass").over
    assert [row["event"] for row in ledger.deliveries(home.ledger, CASE)] == ["claimed", "delivered"]
    assert [row[0] for row in rows(home)] == ["promote", "open", "abort"]


@pytest.mark.slow
@pytest.mark.parametrize("home", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=["home"])
def test_of_two_ticks_at_once_one_writes(home):
    """Four schedulers' ticks at once write one row; the others find it, and none fails."""
    roll_out(home, 1, registered(home, month(1), 1, bias=0.1))
    step.run(params(), home, registered(home, month(2), 2, bias=0.2, champion=1), month(2))
    context = fresh_processes()
    queue = context.Queue()
    processes = [context.Process(target=_tick, args=(home, 31, "pass", "", queue)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} == {0}
    assert [action for outcome, action in answers if outcome == "moved"] == ["advance"]
    assert [row[0] for row in rows(home)] == ["promote", "open", "advance"]
