"""What one training compared, as runs below its own, against a real MLflow."""

import pytest

from pipelines.registry import live
from pipelines.settings import Settings
from tests.pipelines.candidates import month
from tests.pipelines.conftest import free_port
from tests.pipelines.steps.test_model_steps import AS_OF, run_chain
from tests.pipelines.training.test_choice import LINE, declared, put_rows
from tests.pipelines.training.test_choice import TREES as TREES_PARAMS
from tests.pipelines.verbs import register, train

pytestmark = pytest.mark.slow
CASE = "children"
TREES = live.Child("trees", {"family": "lightgbm", "num_leaves": "7"}, {"log_loss": 0.3, "seconds": 1.5})
OUT = live.Child("network", {"family": "tabular"}, {"seconds": 0.5}, "TrainingDiverged: the loss is nan")
BACK = live.Child("network", {"family": "tabular"}, {"log_loss": 0.4, "seconds": 0.5})


def _training(key):
    return live.Training(CASE, month(1), key, {"train.epochs": "3"}, {})


def _children(client, key):
    """The runs below the only run of a training, by name."""
    home = client.get_experiment_by_name(CASE).experiment_id
    [parent] = client.search_runs([home], f"tags.`{live.TRAIN}` = '{key}'")
    runs = client.search_runs([home], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_what_was_compared_is_a_run_of_its_own(settings, client, tmp_path):
    """Every candidate is a run below the training's, with its parameters, metric, seconds, status and reason."""
    with live.recording(settings, _training("told"), tmp_path) as recording:
        recording.tell([TREES])
        recording.tell([TREES, OUT])
    found = _children(client, "told")
    assert set(found) == {"trees", "network"}
    assert (found["trees"].info.status, found["network"].info.status) == ("FINISHED", "FAILED")
    assert found["trees"].data.params == TREES.params
    assert found["trees"].data.metrics == TREES.metrics
    assert found["trees"].info.end_time - found["trees"].info.start_time == pytest.approx(1500, abs=5000)
    assert found["network"].data.tags[live.ERROR] == OUT.error
    assert live.TRAIN not in found["trees"].data.tags


def test_a_retry_makes_no_second_run(settings, client, tmp_path):
    """The next try of a training finds the runs by their names, and one that failed before is taken back."""
    for told in ([TREES, OUT], [TREES, BACK]):
        with live.recording(settings, _training("again"), tmp_path) as recording:
            recording.tell(told)
            recording.tell(told)
    found = _children(client, "again")
    assert set(found) == {"trees", "network"}
    assert found["network"].info.status == "FINISHED"
    assert found["network"].data.metrics["log_loss"] == 0.4
    assert not found["network"].data.tags[live.ERROR]


def test_a_try_that_died_between_making_and_telling_is_completed(settings, client, tmp_path, monkeypatch):
    """A run that was made and never told of is found by its name and completed."""
    with live.recording(settings, _training("died"), tmp_path) as recording:
        made = live.rest.post

        def dies(settings, path, payload):
            if path == "runs/log-batch" and payload["metrics"]:
                raise OSError("gone")
            return made(settings, path, payload)

        with monkeypatch.context() as patched:
            patched.setattr(live.rest, "post", dies)
            recording.tell([TREES])
        assert _children(client, "died")["trees"].info.status == "RUNNING"
        recording.tell([TREES])
    found = _children(client, "died")["trees"]
    assert (found.info.status, found.data.metrics) == ("FINISHED", TREES.metrics)


def test_without_mlflow_nothing_is_raised(tmp_path, caplog):
    """A training that compares goes on without MLflow, with one warning."""
    settings = Settings(home=tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}")
    with live.recording(settings, _training("down"), tmp_path) as recording:
        recording.tell([TREES])
        recording.tell([TREES, OUT])
        with recording.beside():
            pass
        with recording.beside():
            pass
    assert caplog.text.count("goes on without MLflow") == 1


SPACE = {"models.trees.parameters.num_leaves": {"low": 2, "high": 15, "integer": True}}
TUNED = declared({"trees": TREES_PARAMS, "line": LINE}, train={"search": {"trials": 2, "space": SPACE}})
COMPARED = {"trees", "line", "trees.0", "trees.1"}


def _below(client, parent):
    home = client.get_experiment_by_name("loans").experiment_id
    return client.search_runs([home], f"tags.`mlflow.parentRunId` = '{parent}'")


def test_a_training_tells_of_candidates_and_trials(settings, client):
    """The train step leaves one run each for its candidates and trials below its own, which does not claim a model."""
    made = train.run(TUNED, settings, put_rows(settings), AS_OF)
    [parent] = live.find(settings, "loans", made.key, AS_OF)
    found = {run.info.run_name: run for run in _below(client, parent["info"]["run_id"])}
    assert set(found) == COMPARED
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert 2 <= int(found["trees.0"].data.params["models.trees.parameters.num_leaves"]) <= 15
    assert all({"log_loss", "seconds"} <= set(run.data.metrics) for run in found.values())
    told = {one["key"]: one["value"] for one in parent["data"]["params"]}
    assert not [name for name in told if name.startswith("model.")]
    assert told["models.trees.family"] == "lightgbm"


def test_the_register_step_makes_up_for_what_mlflow_was_not_told(settings, client):
    """Without MLflow a training goes on; the register step makes its run and those below it, once."""
    down = settings.model_copy(update={"mlflow_url": f"http://127.0.0.1:{free_port()}"})
    run_dir = put_rows(down)
    run_chain(down, run_dir, AS_OF, TUNED)
    made = register.run(TUNED, settings, run_dir, AS_OF)
    parent = client.get_run(made.facts["mlflow_run"])
    chosen = parent.data.tags["perennial.chosen"]
    assert parent.data.params["model.family"] == TUNED.models[chosen].family
    assert {run.info.run_name for run in _below(client, parent.info.run_id)} == COMPARED
    (run_dir / "register").rename(run_dir / "set-aside")
    register.run(TUNED, settings, run_dir, AS_OF)
    assert len(_below(client, parent.info.run_id)) == len(COMPARED)
    assert "trials.json" in [path.path for path in client.list_artifacts(parent.info.run_id)]
