"""pipelines/steps/reconcile.py: Triton and the aliases become what the ledger says, and stay so."""

import shutil
import threading

import pytest
from tritonclient.grpc import service_pb2 as pb

from pipelines import ledger, storage
from pipelines.deploy import repository, rollout, triton
from pipelines.errors import IntegrityError, Unavailable
from pipelines.params import Batching, Queue, ServingParams
from pipelines.params_file import load_params
from pipelines.registry import aliases
from pipelines.steps import reconcile
from tests.pipelines.candidates import CASE
from tests.pipelines.releases import ONE_ROW, answering, equals_onnxruntime, kill_stub, promote, stub
from tests.pipelines.steps.conftest import fresh_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_releases(triton_server, tmp_path_factory):
    """Settings with versions 1 and 2 released, and the folders of their runs."""
    settings = fresh_state(triton_server, tmp_path_factory.mktemp("ledger"))
    return settings, (promote(settings, 1), promote(settings, 2))


def _without_mlflow(monkeypatch):
    monkeypatch.setattr(aliases, "project", lambda *_: [])
    monkeypatch.setattr(aliases, "untold", lambda *_: ())


@pytest.fixture
def mended(two_releases, monkeypatch):
    """Two releases, and a reconcile whose aliases (test_aliases.py has them) are left out."""
    _without_mlflow(monkeypatch)
    settings, runs = two_releases
    return settings, runs, lambda: reconcile.run(load_params(CASE), settings)["repaired"]


def test_dead_stub_is_revived(mended):
    """A champion whose stub was killed stays "ready" without answering.

    Reconcile brings it back, the other version's stub lives on.
    """
    settings, (_, second), repair = mended
    assert repair() == []
    undisturbed = stub(settings, 1)
    kill_stub(settings, 2)
    assert triton.loaded(settings, CASE, 2)
    assert answering(settings, 1, 2) == [1]
    assert repair() == ["revived version 2"]
    assert equals_onnxruntime(settings, 2, second)
    assert answering(settings, 1, 2) == [1, 2]
    assert stub(settings, 1) == undisturbed
    assert repair() == []


def test_lost_repository_is_built_again(mended):
    """Everything lost from the model repository, damaged in it or left over in it is put in order.

    It is made anew from the ledger and the bundles.
    """
    settings, (first, second), repair = mended
    folder = settings.model_repository / CASE
    triton.unload(settings, CASE)
    shutil.rmtree(folder)
    assert repair() == [
        "staged version 2 from " + str((second / "export").relative_to(settings.root)),
        "staged version 1 from " + str((first / "export").relative_to(settings.root)),
        "configured versions 1, 2",
        "loaded version 2",
        "loaded version 1",
    ]
    assert equals_onnxruntime(settings, 1, first)
    (folder / "2" / "model.onnx").write_bytes(b"damaged")
    shutil.copytree(folder / "1", folder / "7")
    (settings.model_repository / f".{CASE}.stage.dead").mkdir()
    assert repair() == [
        "staged version 2 from " + str((second / "export").relative_to(settings.root)),
        "retired version 7",
    ]
    assert equals_onnxruntime(settings, 2, second)
    assert repository.staged(settings.model_repository, CASE) == [1, 2]
    assert not list(settings.model_repository.glob(".*stage*"))
    assert repair() == []


def test_lost_bundles(mended):
    """Without the bundle of an older version the champion serves and the loss is named.

    Without the champion's own it is an error, and it goes on answering.
    """
    settings, (first, second), repair = mended
    (first / "export").rename(first / "elsewhere")
    [left_out, *_] = repair()
    assert left_out.startswith("left out version 1:")
    assert "does not hold the artefact" in left_out
    assert answering(settings, 1, 2) == [2]
    (second / "export").rename(second / "elsewhere")
    with pytest.raises(IntegrityError, match=r"export does not hold the artefact .* restore the run's folder"):
        repair()
    assert answering(settings, 2) == [2]
    for run in (first, second):
        (run / "elsewhere").rename(run / "export")
    assert repair() == [
        f"staged version 1 from {(first / 'export').relative_to(settings.root)}",
        "configured versions 1, 2",
        "loaded version 1",
    ]


def test_set_aside_bundle_is_found(mended):
    """A champion's bundle that a later commit of the same run set aside is still the one that serves."""
    settings, (_, second), repair = mended
    manifest = storage.read_manifest(second / "export")
    key = ledger.head(settings.ledger, CASE).candidate_key
    aside = second / f"export.{key[:12]}.abc"
    (second / "export").rename(aside)
    (second / "export").mkdir()
    (second / "export" / "manifest.json").write_text(
        manifest.model_copy(update={"key": "f" * 64, "sha256": ""}).model_dump_json()
    )
    shutil.rmtree(settings.model_repository / CASE / "2")
    assert "staged version 2" in repair()[0]
    assert answering(settings, 2) == [2]
    shutil.rmtree(second / "export")
    aside.rename(second / "export")


def test_mlflow_down_does_not_delay_triton(two_releases):
    """With MLflow down, reconcile repairs Triton first and then says that MLflow does not answer."""
    settings, _ = two_releases
    kill_stub(settings, 2)
    with pytest.raises(Unavailable, match=f"MLflow at {settings.mlflow_url} does not answer"):
        reconcile.run(load_params(CASE), settings)
    assert answering(settings, 1, 2) == [1, 2]


def test_a_case_without_its_gpu_is_settled_on_the_cpu(mended):
    """A case that asks for a GPU which Triton lacks is put on the CPU with both versions answering, which is said once.

    After that there is nothing to mend.
    """
    settings, _, repair = mended
    repair()
    params = load_params(CASE).model_copy(update={"serving": ServingParams(device="gpu")})
    said = reconcile.run(params, settings)["repaired"]
    assert said[0].startswith("on the CPU instead of a GPU: Triton at")
    assert answering(settings, 1, 2) == [1, 2]
    running = stub(settings, 1)
    assert reconcile.run(params, settings)["repaired"] == []
    assert stub(settings, 1) == running
    assert repair() == ["configured versions 1, 2"]
    assert repository.instead_of_gpu(settings.model_repository, CASE) == ""
    assert answering(settings, 1, 2) == [1, 2]


def instances_and_queue(settings):
    """How many instances Triton says that the case has, and how many requests may wait."""
    found = triton._call(settings, "ModelConfig", pb.ModelConfigRequest(name=CASE), 10.0).config
    return sum(group.count for group in found.instance_group), (
        found.dynamic_batching.default_queue_policy.max_queue_size if found.HasField("dynamic_batching") else None
    )


def test_other_serving_parameters_are_followed_under_load(mended, monkeypatch):
    """Instances and batching that a case declares are Triton's after the next reconcile, once, and no answer is lost.

    On the CPU in a GPU's place, too, and also when they change while it is there.
    """
    settings, _, repair = mended
    repair()
    assert instances_and_queue(settings) == (1, None)
    monkeypatch.setattr(triton, "ANSWER_SECONDS", 60.0)  # on a busy machine an answer may be late: that is not lost
    answered, lost, stop = list[int](), list[str](), threading.Event()

    def ask():
        while not stop.is_set():
            for version in (1, 2):
                try:
                    triton.infer(settings, CASE, version, ONE_ROW)
                    answered.append(version)
                except Exception as error:  # noqa: BLE001 - whatever it is: an answer was lost
                    lost.append(f"{type(error).__name__}: {error}")

    def reconciled(**serving):
        params = load_params(CASE).model_copy(update={"serving": ServingParams(**serving)})
        return reconcile.run(params, settings)["repaired"]

    batching = Batching(window_ms=1, preferred_rows=(8,), queue=Queue(size=50))
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for one in askers:
        one.start()
    try:
        assert reconciled(device="cpu", instances=2, batching=batching) == ["configured versions 1, 2"]
        assert instances_and_queue(settings) == (2, 50)
        assert reconciled(device="cpu", instances=2, batching=batching) == []
        for instances in (2, 1):
            said, *_ = reconciled(device="gpu", instances=instances, batching=batching)
            assert said.startswith("on the CPU instead of a GPU: Triton at")
            assert instances_and_queue(settings) == (instances, 50)
            assert reconciled(device="gpu", instances=instances, batching=batching) == []
        assert repair() == ["configured versions 1, 2"]
        assert instances_and_queue(settings) == (1, None)
    finally:
        stop.set()
        for one in askers:
            one.join()
    assert len(answered) > 40
    assert lost == []


def test_triton_keeps_what_the_ledger_names_and_nothing_else(mended, monkeypatch):
    """A retired case is unloaded, by its own reconcile or another's, and comes back with its champion.

    One whose folder is gone is unloaded once it has been gone for a while, and is loaded again when it is back.
    """
    settings, (_, second), repair = mended
    repair()
    ledger.set_retired(settings.ledger, CASE, retired=True, reason="old", actor="ada")
    assert repair() == ["unloaded", "retired version 1", "retired version 2"]
    assert triton.index(settings) == set()
    assert repair() == []
    assert reconcile.run(load_params(CASE), settings)["champion"] is None
    ledger.set_retired(settings.ledger, CASE, retired=False, reason="new", actor="ada")
    assert "loaded version 2" in repair()
    assert equals_onnxruntime(settings, 2, second)

    ledger.set_retired(settings.ledger, CASE, retired=True, reason="old", actor="ada")
    with repository.alone(settings.model_repository, CASE):  # somebody works on it
        assert rollout.clear_strays(settings) == []
    assert rollout.clear_strays(settings) == [f"unloaded {CASE}: it is retired"]
    ledger.set_retired(settings.ledger, CASE, retired=False, reason="new", actor="ada")
    other, told = load_params("loans"), []
    assert reconcile._others(other, settings)[-1] == f"{CASE}: loaded version 1"
    assert triton.index(settings) == {CASE}

    monkeypatch.setattr(reconcile.runs, "tell", lambda _params, _settings, notice: told.append(notice))
    monkeypatch.setattr(reconcile.case_files, "case_names", lambda: ["loans"])
    assert reconcile._others(other, settings) == reconcile._others(other, settings) == []  # it may be back in a minute
    monkeypatch.setattr(reconcile, "GONE_SECONDS", 0.0)
    assert reconcile._others(other, settings) == [f"unloaded {CASE}: its folder is gone"]
    assert [(one.case, one.severity, one.alerts[0].rule) for one in told] == [(CASE, "critical", "case_gone")]
    monkeypatch.undo()
    _without_mlflow(monkeypatch)
    assert reconcile._others(other, settings)[-1] == f"{CASE}: loaded version 1"
    assert not list(settings.model_repository.glob(".*.gone"))
    assert answering(settings, 1, 2) == [1, 2]
    assert repair() == []


def test_a_shell_does_not_say_which_cases_are_gone(mended, monkeypatch):
    """On the state of a stack, only the stack's own processes know that a case which they do not find is gone."""
    settings, _, _ = mended
    assert reconcile._sees_all_cases(settings)
    (settings.root / "env").touch()
    try:
        assert not reconcile._sees_all_cases(settings)
        monkeypatch.setenv("PERENNIAL_STACK", "tag")
        assert reconcile._sees_all_cases(settings)
    finally:
        (settings.root / "env").unlink()
