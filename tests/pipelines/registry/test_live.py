"""A training's MLflow run while it trains, when it fails, and when it is run again, against a real MLflow."""

import json
import time
from dataclasses import replace

import pytest

from pipelines.errors import Preempted, TrainingDiverged
from pipelines.registry import live
from pipelines.settings import Settings
from tests.pipelines.candidates import month
from tests.pipelines.conftest import free_port

pytestmark = pytest.mark.slow
CASE = "live"


def _training(key, **more):
    return live.Training(CASE, month(1), key, {"train.epochs": "3"}, {"perennial.actor": "ada"}, **more)


def _lines(steps, validated=()):
    for step in steps:
        yield {
            "step": step,
            "epoch": 0,
            "loss": 1 / step,
            "lr": 0.1,
            "grad_norm": None,
            "samples": 8 * step,
            "seconds": step / 2,
        }
        if step in validated:
            yield {"step": step, "epoch": 0, "validation_loss": 2 / step, "best": True}


def _say(work, lines, mode="a"):
    with (work / "metrics.jsonl").open(mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _fail(settings, key, work, lines, error):
    """A try that says these lines and ends with this error."""
    with live.recording(settings, _training(key), work):
        _say(work, lines)
        raise error


def _curve(client, run, name):
    return [
        (point.step, point.value)
        for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.step)
    ]


def _only_run(client, key):
    experiment = client.get_experiment_by_name(CASE)
    [run] = client.search_runs([experiment.experiment_id], f"tags.`{live.TRAIN}` = '{key}'")
    return run


def test_curves_come_while_it_trains(settings, client, tmp_path, monkeypatch):
    """Points, parameters, tags and system metrics are there before the training ends; it ends FINISHED, cost known."""
    monkeypatch.setattr(live, "SEND_SECONDS", 0.1)
    with live.recording(settings, _training("curves", price_per_hour=3600.0), tmp_path) as recording:
        with recording.beside():
            _say(tmp_path, _lines(range(1, 5), validated={4}))
            deadline = time.monotonic() + 20
            while len(_curve(client, _only_run(client, "curves"), "validation.loss")) < 1:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            running = _only_run(client, "curves")
            _say(tmp_path, _lines([5]))
        spent = recording.cost()
    assert (running.info.status, running.data.params, running.data.tags["perennial.actor"]) == (
        "RUNNING",
        {"train.epochs": "3"},
        "ada",
    )
    run = _only_run(client, "curves")
    assert run.info.status == "FINISHED"
    assert _curve(client, run, "train.loss") == [(step, 1 / step) for step in range(1, 6)]
    assert _curve(client, run, "train.samples_per_second") == [(2, 16.0), (4, 16.0)]
    assert _curve(client, run, "validation.loss") == [(4, 0.5)]
    assert run.data.metrics["system/training_memory_megabytes"] > 10
    assert run.data.metrics["cost.cpu_hours"] == spent["cpu_hours"] > 0
    assert run.data.metrics["cost.money"] == pytest.approx(3600 * spent["cpu_hours"], rel=0.01)


@pytest.mark.parametrize(
    ("error", "status"),
    [(TrainingDiverged("the loss is nan at step 3"), "FAILED"), (Preempted("asked to leave"), "KILLED")],
)
def test_a_failure_is_recorded_and_goes_on(settings, client, tmp_path, error, status):
    """A training that fails leaves a run with its curves up to there, the error and the step; the error goes on."""
    key = f"fails-{status}"
    with pytest.raises(type(error)):
        _fail(settings, key, tmp_path, _lines([1, 2, 3]), error)
    run = _only_run(client, key)
    assert run.info.status == status
    assert run.data.tags[live.ERROR] == f"{type(error).__name__}: {error}"
    assert run.data.tags[live.FAILED_STEP] == "3"
    assert len(_curve(client, run, "train.loss")) == 3


def test_a_retry_goes_on_in_the_same_run(settings, client, tmp_path):
    """A second try adds what is new to the same run, no step twice, after a file was cut back, and clears the error."""
    with pytest.raises(Preempted):
        _fail(settings, "again", tmp_path, _lines(range(1, 6), validated={5}), Preempted("asked to leave"))
    first = _only_run(client, "again")
    _say(tmp_path, _lines(range(1, 4)), mode="w")
    with live.recording(settings, _training("again"), tmp_path) as recording:
        assert _only_run(client, "again").info.status == "RUNNING"
        _say(tmp_path, [{**line, "seconds": 10 + line["step"]} for line in _lines(range(4, 8), validated=())])
    run = _only_run(client, "again")
    assert (run.info.run_id, run.info.status, run.data.tags[live.ERROR]) == (first.info.run_id, "FINISHED", "")
    assert [step for step, _ in _curve(client, run, "train.loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert len(_curve(client, run, "validation.loss")) == 1
    assert recording.cost()["tries"] == 2


def test_two_tries_at_once_share_a_run(settings, client, monkeypatch):
    """Two tries that both find no run and make one end with one: the older."""
    finding, answers = live.find, [[]]
    first = live.open_run(settings, _training("both"))
    monkeypatch.setattr(live, "find", lambda *given: answers.pop() if answers else finding(*given))
    assert live.open_run(settings, _training("both")).id == first.id
    assert _only_run(client, "both").info.run_id == first.id


def test_a_training_may_have_many_parameters(settings, client):
    """More parameters than MLflow takes at once are all in the run, as a case's file has well over a hundred."""
    params = {f"param.{number}": str(number) for number in range(2 * live.PARAMS + 1)}
    run = live.open_run(settings, replace(_training("many"), params=params))
    assert client.get_run(run.id).data.params == params


def test_without_mlflow_a_training_goes_on(tmp_path, caplog):
    """If MLflow is away the training and its cost are unharmed, and one warning says who makes up for it."""
    away = Settings(home=tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}")
    with live.recording(away, _training("away"), tmp_path) as recording, recording.beside():
        _say(tmp_path, _lines([1, 2]))
    assert recording.cost()["wall_hours"] >= 0
    [warning] = [record.getMessage() for record in caplog.records if record.name == live.__name__]
    assert "the register step completes its run" in warning
    assert away.mlflow_url in warning
