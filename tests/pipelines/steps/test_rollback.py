"""pipelines/steps/rollback.py: the release below serves again, once per request."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines import ledger, storage
from pipelines.config import Settings, load_params
from pipelines.errors import ConfigError, ConflictError, Unavailable
from pipelines.steps import rollback
from tests.pipelines.candidates import CASE, candidate, month
from tests.pipelines.conftest import free_port
from tests.pipelines.releases import answering, equals_onnxruntime, kill_stub, promote, roll_out


def _roll_back(settings, reason="bad answers", actor="ada", **arguments):
    return rollback.run(load_params(CASE), settings, reason=reason, actor=actor, **arguments)


def _release(settings, seq, version, run_dir, action="promote"):
    key, bundle = storage.read_manifest(run_dir / "export").key, str((run_dir / "export").relative_to(settings.root))
    fields = {"case": CASE, "expected_seq": seq, "champion": version, "candidate_key": key, "bundle": bundle, "action": action}
    return ledger.append(settings.ledger, **fields, trigger="manual", reason="test", actor="test", as_of=month(version))


@pytest.fixture
def offline(tmp_path):
    """Settings with neither Triton nor MLflow."""
    return Settings(home=tmp_path, triton_http=f"127.0.0.1:{free_port()}", mlflow_url=f"http://127.0.0.1:{free_port()}", actor="ada")


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
    with pytest.raises(Unavailable, match=f"Triton at {offline.triton_http} does not answer"):
        _roll_back(offline)
    assert ledger.head(offline.ledger, CASE).champion == 2


def test_moment_of_a_rollback():
    """A live case rolls back at wall time; one that replays history at its own clock; never before the release that is taken back."""
    fields = {"case": CASE, "seq": 1, "champion": 1, "candidate_key": "k", "bundle": "b", "action": "promote", "trigger": "manual", "reason": "r"}
    head = ledger.Release(**fields, actor="a", mlflow_run=None, verdict_hash=None, as_of=month(3), recorded_at=month(3), previous_hash="", hash="")
    bank, loans, now = load_params("bank"), load_params("loans"), datetime.now(UTC)
    assert rollback._moment(bank, head, None) == month(3)
    assert rollback._moment(bank, head, now) == month(3)
    assert rollback._moment(bank, head, month(4)) == month(4)
    assert rollback._moment(bank, head, month(2)) == month(3)
    assert now - timedelta(minutes=1) < rollback._moment(loans, head, None) < now + timedelta(minutes=1)
    assert rollback._moment(loans, head, now) == now


@pytest.mark.slow
def test_rollbacks_walk_down_the_history(released):
    """A rollback makes the version below answer as champion and keeps the one taken back loaded; a second one goes one further down."""
    first, second, third = (promote(released, number) for number in (1, 2, 3))
    assert answering(released, 1, 2, 3) == [2, 3]
    release = _roll_back(released)
    assert ledger.head(released.ledger, CASE) == release
    below = ledger.releases(released.ledger, CASE)[1]
    assert (release.champion, release.action, release.reason, release.actor, release.as_of) == (2, "rollback", "bad answers", "ada", month(3))
    assert (release.candidate_key, release.bundle, release.mlflow_run) == (below.candidate_key, below.bundle, below.mlflow_run)
    assert answering(released, 1, 2, 3) == [1, 2, 3]
    (third / "rollout").rename(third / "lost")
    assert roll_out(released, 3, third)["outcome"] == "already_released"
    assert _roll_back(released, reason="worse").champion == 1
    assert equals_onnxruntime(released, 1, first)
    assert equals_onnxruntime(released, 2, second)
    with pytest.raises(ConflictError, match="no release below"):
        _roll_back(released)
    again = ledger.champion_before(released.ledger, CASE, month(4))
    assert again.champion == 1, "the next run is judged against what serves now"


@pytest.mark.slow
def test_one_request_rolls_back_once_and_revives(released):
    """A version below whose stub was killed is loaded anew before it serves; the same request again (as_of, reason, actor) changes nothing."""
    promote(released, 1)
    promote(released, 2)
    kill_stub(released, 1)
    assert answering(released, 1, 2) == [2]
    asked = datetime.now(UTC)
    release = _roll_back(released, as_of=asked)
    assert release.champion == 1
    assert answering(released, 1, 2) == [1, 2]
    assert _roll_back(released, as_of=asked) == release
    with pytest.raises(ConflictError, match="version 1 has no release below it"):
        _roll_back(released, as_of=datetime.now(UTC))
