"""pipelines/steps/rollback.py: the release below serves again, once per request."""

from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from pipelines import ledger, storage
from pipelines.contracts import Order, Release
from pipelines.deploy import switch
from pipelines.errors import ConfigError, ConflictError, IntegrityError, Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps import release, rollback
from tests.pipelines.candidates import CASE, candidate, month, registered
from tests.pipelines.conftest import free_port, fresh_processes
from tests.pipelines.releases import answering, equals_onnxruntime, kill_stub, promote, roll_out


def _roll_back(settings, reason="bad answers", actor="ada", **arguments):
    return rollback.run(load_params(CASE), settings, reason=reason, actor=actor, **arguments)


def _let_serve(settings, version, reason="it was right", **arguments):
    return release.run(load_params(CASE), settings, reason=reason, actor="ada", version=version, **arguments)


def _order(settings, arguments):
    """One rollback in a process of its own.

    ``(what serves now, whether this order changed it)``, or what it was refused with.
    """
    try:
        answer = _roll_back(settings, **arguments)
    except ConflictError as error:
        return str(error)
    return answer.serves, answer.changed


def _release(settings, seq, version, run_dir, action="promote"):
    key, bundle = storage.read_manifest(run_dir / "export").key, str((run_dir / "export").relative_to(settings.root))
    fields = {
        "case": CASE,
        "after": seq,
        "champion": version,
        "candidate_key": key,
        "bundle": bundle,
        "action": action,
    }
    return ledger.append(
        settings.ledger, Order(**fields, trigger="manual", reason="test", actor="test", as_of=month(version))
    )


@pytest.fixture
def offline(tmp_path):
    """Settings with neither Triton nor MLflow."""
    return Settings(
        home=tmp_path, triton_grpc=f"127.0.0.1:{free_port()}", mlflow_url=f"http://127.0.0.1:{free_port()}", actor="ada"
    )


def test_impossible_rollbacks_say_why(offline):
    """Without a reason, without a release, or with nothing below the champion there is a clear error and no new row."""
    with pytest.raises(ConfigError, match="needs a reason"):
        _roll_back(offline, reason=" ")
    with pytest.raises(ConfigError, match="bank has no release yet"):
        _roll_back(offline)
    _release(offline, 0, 1, candidate(offline, month(1), bias=0.1))
    with pytest.raises(ConflictError, match="version 1 has no release below it"):
        _roll_back(offline)
    assert len(ledger.releases(offline.ledger, CASE)) == 1


def test_triton_down_rolls_nothing_back(offline):
    """If the version below cannot be asked for an answer, it does not become the champion."""
    for number in (1, 2):
        _release(offline, number - 1, number, candidate(offline, month(number), bias=number / 10))
    with pytest.raises(Unavailable, match=f"Triton at {offline.triton_grpc} does not answer"):
        _roll_back(offline)
    assert ledger.head(offline.ledger, CASE).champion == 2


def test_moment_of_a_rollback():
    """A live case rolls back at wall time; one that replays history at its own clock.

    Never before the release that is taken back.
    """
    fields = {
        "case": CASE,
        "seq": 1,
        "champion": 1,
        "candidate_key": "k",
        "bundle": "b",
        "action": "promote",
        "trigger": "manual",
        "reason": "r",
    }
    head = Release(
        **fields,
        actor="a",
        mlflow_run=None,
        verdict_hash=None,
        as_of=month(3),
        recorded_at=month(3),
        previous_hash="",
        hash="",
    )
    bank, loans, now = load_params("bank"), load_params("loans"), datetime.now(UTC)
    assert switch.moment(bank, head, None) == month(3)
    assert switch.moment(bank, head, now) == month(3)
    assert switch.moment(bank, head, month(4)) == month(4)
    assert switch.moment(bank, head, month(2)) == month(3)
    assert now - timedelta(minutes=1) < switch.moment(loans, head, None) < now + timedelta(minutes=1)
    assert switch.moment(loans, head, now) == now


@pytest.mark.slow
def test_rollbacks_walk_down_the_history(released):
    """A rollback makes the version below answer as champion and keeps the one taken back loaded.

    One that names it goes one further down.
    """
    first, second, third = (promote(released, number) for number in (1, 2, 3))
    assert answering(released, 1, 2, 3) == [2, 3]
    answer = _roll_back(released)
    release = answer.release
    assert (answer.serves, answer.was, answer.changed) == (2, 3, True)
    assert ledger.head(released.ledger, CASE) == release
    below = ledger.releases(released.ledger, CASE)[1]
    assert (release.champion, release.action, release.reason, release.actor, release.as_of) == (
        2,
        "rollback",
        "bad answers",
        "ada",
        month(3),
    )
    assert (release.candidate_key, release.bundle, release.mlflow_run) == (
        below.candidate_key,
        below.bundle,
        below.mlflow_run,
    )
    assert answering(released, 1, 2, 3) == [1, 2, 3]
    (third / "rollout").rename(third / "lost")
    assert roll_out(released, 3, third)["outcome"] == "already_released"
    with pytest.raises(
        ConflictError,
        match=r"nothing was changed: version 2 serves, by release 4 \(rollback, ada: bad answers\).*--from-version 2",
    ):
        _roll_back(released, reason="worse")
    assert _roll_back(released, reason="worse", from_version=2).serves == 1
    assert equals_onnxruntime(released, 1, first)
    assert equals_onnxruntime(released, 2, second)
    with pytest.raises(ConflictError, match="no release below"):
        _roll_back(released, from_version=1)
    again = ledger.champion_before(released.ledger, CASE, month(4))
    assert again.champion == 1, "the next run is judged against what serves now"


@pytest.mark.slow
def test_one_request_rolls_back_once_and_revives(released):
    """A version below whose stub was killed is loaded anew before it serves.

    The same request again (as_of, reason, actor) changes nothing.
    """
    promote(released, 1)
    promote(released, 2)
    kill_stub(released, 1)
    assert answering(released, 1, 2) == [2]
    asked = datetime.now(UTC)
    first = _roll_back(released, as_of=asked)
    assert (first.serves, first.changed) == (1, True)
    assert answering(released, 1, 2) == [1, 2]
    for as_of in (asked, datetime.now(UTC)):
        again = _roll_back(released, as_of=as_of)
        assert (again.release, again.serves, again.changed) == (first.release, 1, False)


@pytest.fixture(scope="module")
def processes():
    """Three processes that order at once."""
    with ProcessPoolExecutor(3, mp_context=fresh_processes()) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_many_orders_at_once_go_one_back(request, released, processes, database):
    """Processes that order a rollback at once, with and without the version, go one release back together.

    Each is told what serves.
    """
    if database == "postgresql":
        released = released.model_copy(update={"ledger_url": request.getfixturevalue("schema")})
    for number in (1, 2, 3):
        promote(released, number)
    told = list(processes.map(_order, [released] * 6, [{"from_version": 3}, {}] * 3))
    assert sorted(told) == [(2, False)] * 5 + [(2, True)]
    assert [row.champion for row in ledger.releases(released.ledger, CASE)] == [1, 2, 3, 2]
    worse, other, same = processes.map(
        _order, [released] * 3, [{"reason": "worse"}, {"actor": "eve"}, {"from_version": 3}]
    )
    assert same == (2, False)
    assert all("nothing was changed: version 2 serves, by release 4" in said for said in (worse, other))
    assert len(ledger.releases(released.ledger, CASE)) == 4


@pytest.mark.slow
def test_forward_again_to_a_known_version(released):
    """A version that was taken back, or one that never served, is released by its number.

    One that the gate turned away only if a person says so.
    """
    for number in (1, 2):
        promote(released, number)
    registered(released, month(3), 3, bias=0.3, champion=2)
    registered(released, month(4), 4, bias=0.4, champion=2, decision="reject")
    assert _roll_back(released).serves == 1
    forward = _let_serve(released, 2)
    assert (forward.serves, forward.was, forward.changed, forward.release.action) == (2, 1, True, "release")
    assert answering(released, 1, 2) == [1, 2]
    assert not _let_serve(released, 2).changed
    assert (
        _let_serve(released, 3).release.verdict_hash
        == storage.read_manifest(released.run_dir(CASE, month(3)) / "gate").facts["verdict_sha256"]
    )
    with pytest.raises(
        ConflictError,
        match=r"version 3 serves.*the verdict on version 4 is reject \(lift of 0.4\): add --despite-verdict",
    ):
        _let_serve(released, 4)
    assert _let_serve(released, 4, reason="the gate's holdout was broken", despite_verdict=True).serves == 4
    with pytest.raises(ConfigError, match="bank has no version 9"):
        _let_serve(released, 9)
    assert _roll_back(released).serves == 3
    assert [(row.champion, row.action) for row in ledger.releases(released.ledger, CASE)][2:] == [
        (1, "rollback"),
        (2, "release"),
        (3, "release"),
        (4, "release"),
        (3, "rollback"),
    ]
    model = released.root / ledger.releases(released.ledger, CASE)[0].bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"model.onnx has sha256"):
        _let_serve(released, 1)
