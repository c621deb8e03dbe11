"""pipelines/registry/aliases.py against a real MLflow: what somebody else moved is noticed, repaired and told once."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import pytest

from pipelines import ledger
from pipelines.alerts import runs, sinks
from pipelines.alerts.delivery import MAX_ATTEMPTS
from pipelines.contracts import Order
from pipelines.params_file import load_params
from pipelines.registry import aliases
from pipelines.registry.aliases import Move
from pipelines.steps import reconcile
from tests.pipelines.candidates import month

pytestmark = pytest.mark.slow
NAMES = (f"shelf{number}" for number in count())


@pytest.fixture
def case(settings, client):
    """The name of a case of its own with the versions 1 to 3 in MLflow, of which 1 and then 2 were released."""
    name = next(NAMES)
    client.create_registered_model(name)
    run = client.create_run(client.create_experiment(name))
    for _ in range(3):
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
    for version in (1, 2):
        _release(settings, name, version)
    assert aliases.project(settings, name) == ["alias champion: none -> 2", "alias previous: none -> 1"]
    return name


def _release(settings, case, version):
    head = ledger.head(settings.ledger, case)
    seq = head.seq if head else 0
    said = {"candidate_key": f"k{version}", "bundle": f"b{version}", "reason": "test", "actor": "test"}
    order = Order(case=case, after=seq, champion=version, action="promote", trigger="manual", as_of=month(seq), **said)
    ledger.append(settings.ledger, order)


def test_what_others_move_is_noted_and_repaired(settings, client, case):
    """Moved, removed and set where there was none: each is repaired at once, and noted until people know of it."""
    client.set_registered_model_alias(case, "champion", "3")
    client.delete_registered_model_alias(case, "previous")
    assert aliases.project(settings, case) == ["alias champion: 3 -> 2", "alias previous: none -> 1"]
    assert aliases.project(settings, case) == []
    client.set_registered_model_alias(case, "challenger", "3")
    aliases.project(settings, case)
    assert client.get_registered_model(case).aliases == {"champion": "2", "previous": "1"}
    moves = (Move(1, "champion", 2, 3), Move(2, "previous", 1, None), Move(3, "challenger", None, 3))
    assert aliases.untold(settings, case) == moves
    aliases.told(settings, case, [1, 3])
    assert aliases.untold(settings, case) == moves[1:2]


def test_an_alias_that_is_behind_was_moved_by_nobody(settings, client, case):
    """A release that MLflow missed, an alias of people's own, and aliases from before anything was noted are no moves.

    Neither is what a person has moved to where the ledger then goes, nor a tag that cannot be read.
    """
    client.set_registered_model_alias(case, "staging", "1")
    _release(settings, case, 3)
    assert aliases.project(settings, case) == ["alias champion: 2 -> 3", "alias previous: 1 -> 2"]
    client.set_registered_model_alias(case, "champion", "1")
    _release(settings, case, 1)
    assert aliases.project(settings, case) == ["alias previous: 2 -> 3"]
    for tag in (None, "nonsense", "[]", '{"ours": 1}'):
        if tag is None:
            client.delete_registered_model_tag(case, aliases.TAG)
        else:
            client.set_registered_model_tag(case, aliases.TAG, tag)
        client.set_registered_model_alias(case, "champion", "2")
        assert aliases.project(settings, case) == ["alias champion: 2 -> 1"]
    assert aliases.untold(settings, case) == ()
    assert client.get_registered_model(case).aliases == {"champion": "1", "previous": "3", "staging": "1"}


class Died(BaseException):
    """As a killed process: nothing goes on."""


WRITES = ("set_registered_model_tag", "set_registered_model_alias", "delete_registered_model_alias")


def _dying_after(monkeypatch, writes):
    """Let the process die instead of the write that follows ``writes`` others."""
    from mlflow import MlflowClient

    left = [writes]

    def bounded(call):
        def write(*arguments):
            if not left[0]:
                raise Died
            left[0] -= 1
            return call(*arguments)

        return write

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, bounded(getattr(MlflowClient, name)))


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_death_between_any_two_writes_is_made_up_for(settings, client, case, monkeypatch, by_hand):
    """The next projection completes the repair; a move is noted once, and what we moved ourselves is never one."""
    if by_hand:
        client.set_registered_model_alias(case, "champion", "3")
    else:
        _release(settings, case, 3)
    for writes in range(5):
        with monkeypatch.context() as patched, suppress(Died):
            _dying_after(patched, writes)
            aliases.project(settings, case)
    assert aliases.project(settings, case) == []
    assert aliases.untold(settings, case) == ((Move(1, "champion", 2, 3),) if by_hand else ())
    wanted = {"champion": "2", "previous": "1"} if by_hand else {"champion": "3", "previous": "2"}
    assert client.get_registered_model(case).aliases == wanted


@pytest.fixture
def reconciled(settings, case, monkeypatch):
    """Reconcile without Triton (test_reconcile.py has it), and what a webhook takes: None while it is broken."""
    told: list = []

    def sink(notice):
        if told == [None]:
            raise sinks.Undelivered("broken")
        told.append(notice)

    monkeypatch.setattr(reconcile.rollout, "restore", lambda *_, **__: [])
    monkeypatch.setattr(reconcile, "_others", lambda *_: [])
    monkeypatch.setattr(reconcile, "load_fields", lambda _: None)
    monkeypatch.setattr(runs, "configured", lambda *_: {"log": sinks.to_log, "webhook": sink})
    params = load_params("bank").model_copy(update={"case": case})
    return lambda: reconcile.run(params, settings)["repaired"], told


def test_people_are_told_once(settings, client, case, reconciled):
    """The run that repairs it tells who moved what, and no later one does; the next move is told anew."""
    run, told = reconciled
    assert (run(), told) == ([], [])
    for moves in (1, 2):
        client.set_registered_model_alias(case, "champion", "1")
        assert run() == ["alias champion: 1 -> 2"]
        assert run() == run() == []
        assert len(told) == moves
    [alert] = told[0].alerts
    assert (alert.rule, alert.severity, told[0].case) == ("alias_moved", "warning", case)
    assert f"somebody moved the alias champion of {case} in MLflow, from version 2 to version 1" in alert.summary
    assert alert.runbook.endswith("#alias-moved")


def test_a_repair_by_another_is_told_by_the_next_run(settings, client, case, reconciled):
    """A rollout or a rollback that finds the alias moved repairs it, and people still hear of it."""
    run, told = reconciled
    client.set_registered_model_alias(case, "champion", "3")
    aliases.project(settings, case)
    assert (run(), len(told)) == ([], 1)


def test_a_broken_sink_is_tried_again(settings, client, case, reconciled):
    """The alias is repaired all the same, the log is told once, and the broken one until it takes it or is given up."""
    run, told = reconciled
    told.append(None)
    client.set_registered_model_alias(case, "champion", "3")
    assert run() == ["alias champion: 3 -> 2"]
    assert ledger.undelivered(settings.ledger, case) == {"webhook": 1}
    told.clear()
    run()
    assert len(told) == 1
    assert ledger.undelivered(settings.ledger, case) == {}
    assert aliases.untold(settings, case) == ()
    told[:] = [None]
    client.set_registered_model_alias(case, "champion", "3")
    for _ in range(MAX_ATTEMPTS):
        run()
    assert aliases.untold(settings, case) == ()
    sent = [row["sink"] for row in ledger.deliveries(settings.ledger, case) if row["event"] == "claimed"]
    assert (sent.count("log"), sent.count("webhook")) == (2, 2 + MAX_ATTEMPTS)
