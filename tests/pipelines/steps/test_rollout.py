"""pipelines/steps/rollout.py: a candidate serves after the handshake, or everything stays as it is."""

import json
import os
import re
import signal

import pytest

from pipelines import ledger, runtime, storage
from pipelines.contracts import Order
from pipelines.deploy import repository
from pipelines.errors import IntegrityError, Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps import reconcile
from pipelines.steps import rollout as rollout_step
from tests.pipelines.candidates import CASE, candidate, month, registered
from tests.pipelines.conftest import free_port, fresh_processes
from tests.pipelines.releases import answering, equals_onnxruntime, promote, roll_out
from tests.pipelines.verbs import register, rollout


@pytest.fixture
def offline(tmp_path):
    """Settings with neither Triton nor MLflow."""
    return Settings(
        home=tmp_path, triton_grpc=f"127.0.0.1:{free_port()}", mlflow_url=f"http://127.0.0.1:{free_port()}", actor="ada"
    )


def _release(settings, seq, version, run_dir, action="promote"):
    key = storage.read_manifest(run_dir / "export").key
    fields = {
        "case": CASE,
        "after": seq,
        "champion": version,
        "candidate_key": key,
        "bundle": str(run_dir / "export"),
        "action": action,
    }
    return ledger.append(
        settings.ledger, Order(**fields, trigger="manual", reason="test", actor="test", as_of=month(version))
    )


@pytest.mark.parametrize("decision", ["reject", "inconclusive"])
def test_only_a_promotion_touches_anything(offline, decision):
    """A candidate that the gate did not promote is kept out.

    No release, no model repository, Triton is not even asked.
    """
    run_dir = registered(offline, month(1), 1, bias=0.1, decision=decision)
    assert roll_out(offline, 1, run_dir) == {"outcome": "kept", "version": 1, "seq": None}
    assert ledger.head(offline.ledger, CASE) is None
    assert not offline.model_repository.exists()


def _forge(folder, **facts):
    """Change facts of a manifest as somebody who knows how it is read."""
    path = folder / storage.MANIFEST
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"facts": said["facts"] | facts, "sha256": ""}))


def test_a_word_in_a_manifest_promotes_nobody(offline):
    """The verdict is the ledger's: a rejected candidate whose gate's manifest says promote is kept out."""
    run_dir = registered(offline, month(1), 1, bias=0.1, decision="reject")
    _forge(run_dir / "gate", decision="promote")
    assert roll_out(offline, 1, run_dir)["outcome"] == "kept"
    assert ledger.head(offline.ledger, CASE) is None


def test_another_candidates_verdict_promotes_nobody(offline):
    """A gate's manifest that cites a verdict on another candidate, or one nobody gave, is an error by name."""
    good = candidate(offline, month(1), bias=0.2)
    run_dir = registered(offline, month(2), 2, bias=0.1, decision="reject")
    _forge(run_dir / "gate", verdict_sha256=storage.read_manifest(good / "gate").facts["verdict_sha256"])
    with pytest.raises(IntegrityError, match="is not the one on this candidate"):
        roll_out(offline, 2, run_dir)
    _forge(run_dir / "gate", verdict_sha256="0" * 64)
    with pytest.raises(IntegrityError, match="there is no verdict 000000000000"):
        roll_out(offline, 2, run_dir)
    assert ledger.head(offline.ledger, CASE) is None


@pytest.mark.parametrize("decision", ["reject", "inconclusive"])
def test_two_runs_may_have_the_same_verdict(offline, decision):
    """Gate runs that come to the same verdict, to the byte, as on two empty holdouts, each keep their candidate out."""
    runs = [
        registered(offline, month(number), number, bias=0.1, decision=decision, champion=champion)
        for number, champion in ((1, None), (2, 7))
    ]
    first, second = (storage.read_manifest(run_dir / "gate") for run_dir in runs)
    assert first.facts["verdict_sha256"] == second.facts["verdict_sha256"]
    assert first.key != second.key
    for number, run_dir in enumerate(runs, 1):
        assert roll_out(offline, number, run_dir)["outcome"] == "kept"


def test_stale_judgement_changes_nothing(offline):
    """A candidate judged against a champion that is no longer at the head of the ledger is not released."""
    for seq in (0, 1):
        _release(offline, seq, seq + 1, candidate(offline, month(seq + 1), bias=seq))
    run_dir = registered(offline, month(3), 3, bias=0.3, champion=1)
    assert roll_out(offline, 3, run_dir) == {"outcome": "stale", "version": 3, "seq": None}
    assert ledger.head(offline.ledger, CASE).champion == 2


def test_run_older_than_the_champion_is_stale(offline):
    """A run whose as_of lies before the champion's release does not replace it.

    It does not either if it was judged against its version.
    """
    run_dir = candidate(offline, month(4), bias=0.1)
    _release(offline, 0, 4, run_dir)
    old = registered(offline, month(3), 5, bias=0.5, champion=4)
    assert roll_out(offline, 3, old)["outcome"] == "stale"


def test_rolled_back_candidate_does_not_come_back(offline):
    """Running again after a rollback, even with the rollout's folder lost, releases nothing.

    The candidate has served before.
    """
    first, second = (registered(offline, month(n), n, bias=n / 10, champion=n - 1 or None) for n in (1, 2))
    _release(offline, 0, 1, first)
    _release(offline, 1, 2, second)
    ledger.append(
        offline.ledger,
        Order(
            case=CASE,
            after=2,
            champion=1,
            candidate_key=storage.read_manifest(first / "export").key,
            bundle="b",
            action="rollback",
            trigger="manual",
            reason="bad",
            actor="ada",
            as_of=month(2),
        ),
    )
    assert roll_out(offline, 2, second) == {"outcome": "already_released", "version": 2, "seq": 2}
    assert [release.champion for release in ledger.releases(offline.ledger, CASE)] == [1, 2, 1]


def test_triton_down_says_where_and_what_to_do(offline):
    """With no Triton the step fails with a retryable error that names the address.

    No release, nothing staged, no folder published.
    """
    run_dir = registered(offline, month(1), 1, bias=0.1)
    with pytest.raises(
        Unavailable, match=rf"Triton at {offline.triton_grpc} does not answer .* start it, or set PERENNIAL_TRITON_GRPC"
    ):
        roll_out(offline, 1, run_dir)
    assert ledger.head(offline.ledger, CASE) is None
    assert repository.staged(offline.model_repository, CASE) == []
    assert not (run_dir / "rollout").exists()


@pytest.mark.slow
def test_promotions(released):
    """Each promotion serves as ONNX Runtime computes, keeps the one before it loaded, retires older ones.

    It is one row of the ledger.
    """
    first, second, third = (promote(released, number) for number in (1, 2, 3))
    assert answering(released, 1, 2, 3) == [2, 3]
    assert equals_onnxruntime(released, 3, third)
    assert equals_onnxruntime(released, 2, second)
    assert (
        repository.staged(released.model_repository, CASE)
        == repository.configured(released.model_repository, CASE)
        == [2, 3]
    )
    releases = ledger.releases(released.ledger, CASE)
    assert [(r.champion, r.action, r.actor, r.mlflow_run, r.as_of) for r in releases] == [
        (n, "promote", "ada", f"run-{n}", month(n)) for n in (1, 2, 3)
    ]
    assert releases[0].bundle == str((first / "export").relative_to(released.root))
    assert releases[2].verdict_hash == storage.read_manifest(third / "gate").facts["verdict_sha256"]
    before = storage.read_manifest(third / "rollout")
    assert rollout.run(load_params(CASE), released, third, month(3)) == before
    assert ledger.releases(released.ledger, CASE) == releases


@pytest.mark.slow
def test_refused_model_leaves_the_champion_serving(released):
    """A model that cannot serve is refused by name, and the champion answers as before.

    One that Triton cannot load, other bytes than the manifest's, other answers than ONNX Runtime's; the next good
    candidate is promoted.
    """
    first = promote(released, 1)
    garbage = registered(released, month(2), 2, bias=0.2, champion=1, model=b"this is no model")
    with pytest.raises(IntegrityError, match=r"refuses to load bank: load failed .*version 2.*(Protobuf|protobuf)"):
        roll_out(released, 2, garbage)
    damaged = registered(released, month(3), 3, bias=0.3, champion=1)
    model = damaged / "export" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"model.onnx has sha256 .* its manifest says"):
        roll_out(released, 3, damaged)
    other = registered(released, month(4), 4, bias=0.4, champion=1)
    with pytest.MonkeyPatch.context() as patch:
        score = runtime.score
        patch.setattr(runtime, "score", lambda bundle, tensors: score(bundle, tensors) + 1e-4)
        with pytest.raises(IntegrityError, match=r"version 4 in Triton differs from ONNX Runtime .* by up to 0.0001"):
            roll_out(released, 4, other)
    assert [release.champion for release in ledger.releases(released.ledger, CASE)] == [1]
    assert (
        repository.staged(released.model_repository, CASE)
        == repository.configured(released.model_repository, CASE)
        == [1]
    )
    assert answering(released, 1, 2, 3, 4) == [1]
    assert equals_onnxruntime(released, 1, first)
    assert roll_out(released, 4, other)["outcome"] == "promoted"


@pytest.mark.slow
def test_model_repository_without_the_model(released, tmp_path):
    """If the staged model is not in the repository that Triton serves, Triton's reason is told.

    The setting to look at is named.
    """
    elsewhere = released.model_copy(update={"home": tmp_path, "ledger_url": ""})
    run_dir = registered(elsewhere, month(1), 1, bias=0.1)
    with pytest.raises(
        IntegrityError,
        match=r"refuses to load bank: .*failed to poll from model repository.*--model-repository must be",
    ):
        roll_out(elsewhere, 1, run_dir)
    assert ledger.head(elsewhere.ledger, CASE) is None


def _dying(settings, run_dir, number, point):
    os.environ["PERENNIAL_FAILPOINT"] = f"rollout:{point}"
    roll_out(settings, number, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("point", rollout_step.FAILPOINTS)
def test_killed_and_run_again(released, point):
    """A rollout that is killed at any of its effects leaves the champion answering.

    Running again ends in the same promotion.
    """
    promote(released, 1)
    run_dir = registered(released, month(2), 2, bias=0.2, champion=1)
    process = fresh_processes().Process(target=_dying, args=(released, run_dir, 2, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert answering(released, 1) == [1]
    assert roll_out(released, 2, run_dir) == {"outcome": "promoted", "version": 2, "seq": 2}
    assert [release.champion for release in ledger.releases(released.ledger, CASE)] == [1, 2]
    assert equals_onnxruntime(released, 2, run_dir)
    assert not list(released.model_repository.glob(".*stage*"))
    assert not list(run_dir.glob(".rollout.*"))


def _racing(settings, run_dir, number, queue):
    try:
        queue.put((number, roll_out(settings, number, run_dir)["outcome"]))
    except BaseException as error:  # the parent must hear of it
        queue.put((number, repr(error)))
        raise


@pytest.mark.slow
def test_eight_rollouts_at_once(released, mlflow_url):
    """Of eight candidates that roll out at once, one is promoted and seven are stale; the alias agrees.

    All were judged against one champion.
    """
    from mlflow import MlflowClient

    settings = released.model_copy(update={"mlflow_url": mlflow_url})
    params = load_params(CASE)
    versions = {}
    for number in range(9):
        run_dir = candidate(
            settings, month(number), bias=1 + number / 10, champion=None if number == 0 else versions[0]
        )
        versions[number] = register.run(params, settings, run_dir, month(number)).facts["version"]
        if number == 0:
            assert roll_out(settings, 0, run_dir)["outcome"] == "promoted"
    context = fresh_processes()
    queue = context.Queue()
    processes = [
        context.Process(target=_racing, args=(settings, settings.run_dir(CASE, month(n)), n, queue))
        for n in range(1, 9)
    ]
    for process in processes:
        process.start()
    outcomes = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert sorted(outcomes.values()) == ["promoted"] + ["stale"] * 7
    [winner] = [versions[number] for number, outcome in outcomes.items() if outcome == "promoted"]
    assert [release.champion for release in ledger.releases(settings.ledger, CASE)] == [versions[0], winner]
    reconcile.run(params, settings)
    assert MlflowClient(mlflow_url, mlflow_url).get_registered_model(CASE).aliases == {
        "champion": str(winner),
        "previous": str(versions[0]),
    }
    assert answering(settings, *versions.values()) == [versions[0], winner]


def test_repository_lock_names_its_holder(tmp_path):
    """Whoever cannot get the model repository's lock in time is told which process holds it."""
    holder = re.escape(f"held by process {os.getpid()} for more than 0.1 s")
    with (
        repository.alone(tmp_path, CASE),
        pytest.raises(Unavailable, match=holder),
        repository.alone(tmp_path, CASE, patience=0.1),
    ):
        pass
