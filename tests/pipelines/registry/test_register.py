"""pipelines/registry and the register step against a real MLflow: one run, one version, whatever happens."""

import contextlib
import json
import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from pipelines import ledger, runtime, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order
from pipelines.errors import IntegrityError, Unavailable
from pipelines.params_file import load_params
from pipelines.registry import aliases, live
from pipelines.settings import Settings
from pipelines.steps import register as register_step
from tests.pipelines.alerts.found import report
from tests.pipelines.candidates import CASE, candidate, month, rows
from tests.pipelines.conftest import free_port, fresh_processes
from tests.pipelines.verbs import register
from tests.serving.gateway.world import until

pytestmark = pytest.mark.slow


def _register(settings, run_dir, as_of, trigger="manual"):
    return register.run(load_params(CASE), settings, run_dir, as_of, trigger=trigger)


def _of_key(client, run_dir):
    """All runs and versions of the candidate in ``run_dir``."""
    key = storage.read_manifest(run_dir / "gate").key
    experiment = client.get_experiment_by_name(CASE)
    runs = client.search_runs([experiment.experiment_id], f"tags.`perennial.key` = '{key}'") if experiment else []
    return list(runs), list(client.search_model_versions(f"name='{CASE}' and tags.`perennial.key`='{key}'"))


def _logged(client, run_dir):
    """All logged models of the candidate in ``run_dir``."""
    key = storage.read_manifest(run_dir / "gate").key
    home = client.get_experiment_by_name(CASE).experiment_id
    return list(client.search_logged_models([home], f"tags.`perennial.key` = '{key}'"))


def test_record_is_complete(settings, client):
    """The run holds parameters, metrics, curves, data set, tags, artefacts."""
    run_dir = candidate(settings, month(1), bias=0.11, champion=7)
    ledger.open_episode(settings.ledger, case=CASE, episode="e1", as_of=month(1), evidence={})
    manifest = _register(settings, run_dir, month(1), trigger="performance")
    run = client.get_run(manifest.facts["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == str(load_params(CASE).train.epochs)
    assert run.data.metrics["challenger.roc_auc"] == run.data.metrics["champion.roc_auc"] == 0.75
    assert run.data.metrics["lift.low"] == pytest.approx(0.01)
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "epoch.loss")] == [
        (1, 0.7),
        (2, 0.6),
    ]
    tags = {
        name.removeprefix("perennial."): value for name, value in run.data.tags.items() if name.startswith("perennial.")
    }
    gate = storage.read_manifest(run_dir / "gate")
    assert (tags["key"], tags["verdict"], tags["decision"]) == (gate.key, gate.facts["verdict_sha256"], "promote")
    assert (tags["case"], tags["as_of"], tags["trigger"], tags["episode"]) == (
        CASE,
        month(1).isoformat(),
        "performance",
        "e1",
    )
    assert tags["candidate"] == storage.read_manifest(run_dir / "export").key
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == storage.read_manifest(run_dir / "dataset").key[:36]
    assert {"verdict.json", "bundle.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    version = client.get_model_version(CASE, str(manifest.facts["version"]))
    assert version.run_id == run.info.run_id
    words = "promote, by the rule lower_bound: lift of 0.11"
    assert (version.description, run.data.tags["mlflow.note.content"], tags["reason"]) == (words, words, "lift of 0.11")
    assert {name: version.tags[f"perennial.{name}"] for name in ("decision", "rule", "reason")} == {
        name: tags[name] for name in ("decision", "rule", "reason")
    }


def test_a_version_answers_raw_rows_elsewhere(settings, client):
    """It is a logged model with the run's metrics, whose files are what was exported, as ONNX and as a pyfunc.

    Loaded by its alias it answers a frame of the declared fields, its own input example among them.
    """
    import mlflow
    import onnx

    run_dir = candidate(settings, month(1), bias=0.115)
    facts = _register(settings, run_dir, month(1)).facts
    client.set_registered_model_alias(CASE, "tried", str(facts["version"]))
    version = client.get_model_version(CASE, str(facts["version"]))
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    run = client.get_run(facts["mlflow_run"])
    assert (logged.status, logged.source_run_id, logged.tags["perennial.key"]) == (
        "READY",
        run.info.run_id,
        storage.read_manifest(run_dir / "gate").key,
    )
    assert [made.model_id for made in run.outputs.model_outputs] == [logged.model_id]
    assert {metric.key: metric.value for metric in logged.metrics} == {
        name: value for name, value in run.data.metrics.items() if name != "epoch.loss"
    }
    mlflow.set_tracking_uri(settings.mlflow_url)
    model = mlflow.pyfunc.load_model(f"models:/{CASE}@tried")
    fields = load_fields(CASE)
    assert model.metadata.get_input_schema().input_names() == list(fields.names)
    frame = rows(fields, 50, seed=3).select(fields.names)
    found = model.predict(frame.to_pandas())
    good = found["problem"].isna().to_numpy()
    own = runtime.score_rows(run_dir / "export", fields, frame.filter(good).to_dict(as_series=False))
    assert found["score"][good].tolist() == own.tolist()
    assert 0 < good.sum() < 50
    assert model.predict(model.input_example)["problem"].tolist() == [None]
    assert mlflow.onnx.load_model(version.source) == onnx.load(run_dir / "export" / "model.onnx")
    client.delete_registered_model_alias(CASE, "tried")


def test_a_version_from_before_stays_as_it_is(settings, client):
    """One whose files are its run's, as once made, is found again, and gets no model and no second version."""
    run_dir = candidate(settings, month(1), bias=0.117)
    key = storage.read_manifest(run_dir / "gate").key
    experiment = client.get_experiment_by_name(CASE)
    home = experiment.experiment_id if experiment else client.create_experiment(CASE)
    tags = {"perennial.key": key, live.TRAIN: storage.read_manifest(run_dir / "train").key}
    run = client.create_run(home, tags=tags | {live.AS_OF: month(1).isoformat()})
    with contextlib.suppress(Exception):
        client.create_registered_model(CASE)
    source = f"{run.info.artifact_uri}/model"
    version = client.create_model_version(CASE, source, run.info.run_id, tags={"perennial.key": key})
    facts = _register(settings, run_dir, month(1)).facts
    assert facts == {"version": int(version.version), "mlflow_run": run.info.run_id}
    assert client.get_model_version(CASE, version.version).source == source
    assert _logged(client, run_dir) == []


def test_what_was_promised_is_recorded_beside_what_came(settings, client):
    """Run and version of a candidate tell the probe's gain, its interval, its price and when; again changes nothing."""
    common = {"case": CASE, "candidate_key": "k", "bundle": "b", "reason": "r", "actor": "ada"}
    order = Order(**common, after=0, champion=7, action="promote", trigger="initial", as_of=month(1))
    ledger.append(settings.ledger, order)
    run_dir = candidate(settings, month(2), bias=0.12, champion=7)
    gain = {"value": 0.08, "low": 0.05, "high": 0.11}
    found = report(case=CASE, model_version=7, headroom={"code": "measured", "price": 0.02, "gain": gain})

    def build(folder: Path) -> dict:
        (folder / "report.json").write_text(storage.canonical_json(found))
        return {}

    storage.commit(run_dir / "drift", case=CASE, as_of=month(2), key="d", inputs={}, build=build)
    manifest = _register(settings, run_dir, month(2), trigger="headroom")
    (run_dir / "register" / storage.MANIFEST).unlink()
    assert _register(settings, run_dir, month(2), trigger="headroom").facts == manifest.facts
    run = client.get_run(manifest.facts["mlflow_run"])
    told = {name: value for name, value in run.data.metrics.items() if name.startswith("headroom_")}
    assert told == {"headroom_gain": 0.08, "headroom_low": 0.05, "headroom_high": 0.11, "headroom_price": 0.02}
    assert run.data.tags["perennial.headroom_as_of"] == month(2).isoformat()
    assert run.data.tags["perennial.headroom_against"] == "champion"
    version = client.get_model_version(CASE, str(manifest.facts["version"]))
    assert "a probe promised 0.080 nats (0.050 to 0.110) over the champion's answers" in version.description
    [points] = [client.get_metric_history(run.info.run_id, "headroom_gain")]
    assert len(points) == 1


def test_twice_is_once(settings, client):
    """Registering again, also with the step's folder gone or by another trigger, makes no second run and no version."""
    run_dir = candidate(settings, month(1), bias=0.12)
    first = _register(settings, run_dir, month(1))
    assert _register(settings, run_dir, month(1), trigger="drift") == first
    (run_dir / "register").rename(run_dir / "lost")
    assert _register(settings, run_dir, month(1)).facts == first.facts
    runs, versions = _of_key(client, run_dir)
    assert ([run.info.run_id for run in runs], [int(version.version) for version in versions]) == (
        [first.facts["mlflow_run"]],
        [first.facts["version"]],
    )


def _train(settings, run_dir, as_of):
    """The MLflow run that the train step of this candidate opened."""
    return live.open_run(
        settings,
        live.Training(
            CASE, as_of, storage.read_manifest(run_dir / "train").key, {"train.epochs": "8"}, {"perennial.actor": "ada"}
        ),
    )


def test_the_run_of_the_training_is_completed(settings, client):
    """The candidate's run is the one that its training opened; a clear and a second try find it again."""
    run_dir = candidate(settings, month(20), bias=0.81)
    opened = _train(settings, run_dir, month(20))
    manifest = _register(settings, run_dir, month(20))
    (run_dir / "register").rename(run_dir / "cleared")
    assert _register(settings, run_dir, month(20)).facts == manifest.facts
    run = client.get_run(manifest.facts["mlflow_run"])
    assert run.info.run_id == opened.id
    assert (run.data.tags["perennial.actor"], run.data.tags["perennial.decision"], run.info.status) == (
        "ada",
        "promote",
        "FINISHED",
    )
    assert len(live.find(settings, CASE, storage.read_manifest(run_dir / "train").key, month(20))) == 1
    assert _train(settings, run_dir, month(20)).id == opened.id


def test_what_mlflow_missed_is_made_up_for(settings, client):
    """A training that MLflow did not see, and one whose end it missed, have all of their curves after register."""
    for number, seen in ((21, False), (22, True)):
        run_dir = candidate(settings, month(number), bias=0.8 + number / 100)
        lines = [
            {
                "step": step,
                "epoch": 0,
                "loss": 1 / step,
                "lr": 0.1,
                "grad_norm": 1.0,
                "samples": 8 * step,
                "seconds": 0.2 * step,
            }
            for step in range(1, 31)
        ]
        (run_dir / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if seen:
            run = _train(settings, run_dir, month(number))
            live.send(
                settings, run, [live.Point("train.loss", 1 / step, step, 0.2 * step) for step in range(1, 11)], (10, 0)
            )
        run_id = _register(settings, run_dir, month(number)).facts["mlflow_run"]
        assert sorted(point.step for point in client.get_metric_history(run_id, "train.loss")) == list(range(1, 31))
        assert {"training.png", "metrics.jsonl"} <= {file.path for file in client.list_artifacts(run_id)}


def test_a_training_judged_twice_is_two_candidates(settings, client):
    """Another verdict on the same training gets a run of its own, and the first one keeps its verdict."""
    run_dir = candidate(settings, month(23), bias=0.83)
    opened = _train(settings, run_dir, month(23))
    first = _register(settings, run_dir, month(23)).facts
    candidate(settings, month(23), bias=0.83, decision="reject")
    second = _register(settings, run_dir, month(23)).facts
    assert first["mlflow_run"] == opened.id != second["mlflow_run"]
    decisions = [client.get_run(facts["mlflow_run"]).data.tags["perennial.decision"] for facts in (first, second)]
    assert decisions == ["promote", "reject"]


def _dying(settings, run_dir, as_of, point):
    os.environ["PERENNIAL_FAILPOINT"] = f"register:{point}"
    _register(settings, run_dir, as_of)


FIRST, *OTHERS = [*register_step.FAILPOINTS, "manifest", "published"]


@pytest.mark.parametrize("point", [FIRST, *(pytest.param(point, marks=pytest.mark.long) for point in OTHERS)])
def test_killed_and_run_again(settings, client, point):
    """A register step that is killed between its effects is completed by the next.

    There is one finished run, one model with its files, and one version.
    """
    run_dir = candidate(settings, month(2), bias=0.2 + len(point) / 100)
    process = fresh_processes().Process(target=_dying, args=(settings, run_dir, month(2), point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    manifest = _register(settings, run_dir, month(2))
    [run], [version] = _of_key(client, run_dir)
    assert (run.info.run_id, run.info.status) == (manifest.facts["mlflow_run"], "FINISHED")
    assert int(version.version) == manifest.facts["version"]
    [logged] = _logged(client, run_dir)
    assert (version.source, logged.status) == (f"models:/{logged.model_id}", "READY")
    assert "MLmodel" in {file.path for file in client.list_logged_model_artifacts(logged.model_id)}
    assert len(client.get_metric_history(run.info.run_id, "epoch.loss")) == 2
    assert not list(run_dir.glob(".register.*"))


def _dying_in_upload(settings, run_dir, as_of, scratch):
    import mlflow

    tempfile.tempdir = str(scratch)
    mlflow.MlflowClient.log_model_artifacts = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    _register(settings, run_dir, as_of)


def test_what_was_to_be_uploaded_is_swept(settings, client, tmp_path):
    """A register step that is killed during its upload leaves no copy of the model once it was run again."""
    run_dir = candidate(settings, month(24), bias=0.37)
    arguments = (settings, run_dir, month(24), tmp_path)
    process = fresh_processes().Process(target=_dying_in_upload, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    _register(settings, run_dir, month(24))
    assert [path.name for folder in (run_dir, tmp_path) for path in folder.glob("*") if "model" in path.name] == []


def _sleepy(settings, run_dir, as_of):
    from pipelines.registry import register as room

    experiment = room._experiment

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGSTOP)
        return experiment(*arguments)

    room._experiment = stopped
    _register(settings, run_dir, as_of)


def test_zombie_leaves_no_second_run(settings, client):
    """A try that was stopped before it made its run, and wakes after another committed, deletes what it made."""
    run_dir = candidate(settings, month(3), bias=0.3)
    process = fresh_processes().Process(target=_sleepy, args=(settings, run_dir, month(3)))
    process.start()
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 60)
    manifest = _register(settings, run_dir, month(3))
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
    [run], [version] = _of_key(client, run_dir)
    assert (run.info.run_id, int(version.version)) == (manifest.facts["mlflow_run"], manifest.facts["version"])
    assert [f"models:/{logged.model_id}" for logged in _logged(client, run_dir)] == [version.source]
    assert storage.read_manifest(run_dir / "register") == manifest


def test_lost_version_is_refused(settings, client):
    """If MLflow lost the version that a committed run names, the step says so instead of making another number."""
    run_dir = candidate(settings, month(4), bias=0.4)
    version = _register(settings, run_dir, month(4)).facts["version"]
    client.delete_model_version(CASE, str(version))
    with pytest.raises(IntegrityError, match=f"version {version} of {CASE}: restore its database"):
        _register(settings, run_dir, month(4))


def test_mlflow_down_says_where_and_what_to_do(settings):
    """With no MLflow the step fails with a retryable error that names the address, and publishes nothing."""
    down = Settings(home=settings.home, mlflow_url=f"http://127.0.0.1:{free_port()}")
    run_dir = candidate(down, month(5), bias=0.5)
    with pytest.raises(
        Unavailable, match=rf"MLflow at {down.mlflow_url} does not answer .*: start it, or set PERENNIAL_MLFLOW_URL"
    ):
        _register(down, run_dir, month(5))
    assert not (run_dir / "register").exists()


def _release(settings, seq, version, action="promote"):
    return ledger.append(
        settings.ledger,
        Order(
            case=CASE,
            after=seq,
            champion=version,
            candidate_key=f"k{version}",
            bundle=f"b{version}",
            action=action,
            trigger="manual",
            reason="test",
            actor="test",
            as_of=month(seq),
        ),
    )


def test_aliases_follow_the_ledger(settings, client):
    """Champion, previous and an undecided challenger follow the ledger; a second projection changes nothing."""
    versions = [
        _register(settings, candidate(settings, month(number), bias=0.6 + number / 100), month(number)).facts["version"]
        for number in (6, 7)
    ]
    undecided = candidate(settings, month(8), bias=0.69, decision="inconclusive")
    challenger = _register(settings, undecided, month(8)).facts["version"]
    for seq, version in enumerate(versions):
        _release(settings, seq, version)
    aliases.project(settings, CASE)
    expected = {"champion": str(versions[1]), "previous": str(versions[0]), "challenger": str(challenger)}
    assert client.get_registered_model(CASE).aliases == expected
    client.set_registered_model_alias(CASE, "champion", str(challenger))
    client.delete_registered_model_alias(CASE, "previous")
    assert len(aliases.project(settings, CASE)) == 2
    assert client.get_registered_model(CASE).aliases == expected
    assert aliases.project(settings, CASE) == []
    _release(settings, 2, versions[0], action="rollback")
    candidate(settings, month(9), bias=0.7, decision="reject")
    aliases.project(settings, CASE)
    assert client.get_registered_model(CASE).aliases == {"champion": str(versions[0])}
