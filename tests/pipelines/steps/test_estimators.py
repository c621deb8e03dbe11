"""Cases whose model is an estimator, through the real steps: from their rows to a verdict, and trained again."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import yaml

from pipelines import storage
from pipelines.cases.surveying import survey
from pipelines.params_file import load_params
from pipelines.reproduction.retrain import reproduce
from pipelines.settings import Settings
from tests import shop, trips
from tests.pipelines.conftest import free_port
from tests.pipelines.reproduction.runs import registered
from tests.pipelines.verbs import dataset, evaluate, export, gate, ingest, train, validate

AS_OF = trips.START + timedelta(days=25)
FIRST = (ingest, validate, dataset, train, export, evaluate, gate)
MODELS = {
    "lightgbm": {"kind": "estimator", "family": "lightgbm", "parameters": {"n_estimators": 40}},
    "ridge": {"kind": "estimator", "family": "sklearn:Ridge"},
}


@pytest.fixture(scope="module", params=MODELS)
def first(request, tmp_path_factory):
    """A first run of a case without model.py, up to its verdict: settings and folder."""
    with shop.installed(tmp_path_factory.mktemp("cases")) as root:
        folder = trips.write(root)
        (folder / "model.py").unlink()
        params = yaml.safe_load((folder / "params.yaml").read_text())
        params |= {"model": MODELS[request.param], "train": {"seed": 3}}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        home, data = tmp_path_factory.mktemp("estimators"), tmp_path_factory.mktemp("data")
        settings = Settings(home=home, data_dir=data, mlflow_url=f"http://127.0.0.1:{free_port()}")
        trips.rows(2500).write_parquet(data / "trips.parquet")
        run_dir = settings.run_dir(trips.CASE, AS_OF)
        for step in FIRST:
            step.run(load_params(trips.CASE), settings, run_dir, AS_OF)
        yield settings, run_dir


def facts(run_dir, step):
    """What a step said."""
    return storage.read_manifest(run_dir / step).facts


def test_a_case_of_estimators_needs_no_network(first):
    """Its folder has no model.py, and nothing is wrong with it."""
    found = {case.name: case.problem for case in survey()}
    assert found[trips.CASE] == ""


def test_it_is_trained_exported_and_promoted_like_a_network(first):
    """It beats the mean surely, its graph answers what it answers, and its cost and library are recorded."""
    _, run_dir = first
    assert facts(run_dir, "gate")["decision"] == "promote"
    assert facts(run_dir, "export")["parity"] <= 1e-5
    found = facts(run_dir, "evaluate")
    assert found["challenger"]["rmse"] < 0.8 * found["base_rate"]["rmse"]
    record = json.loads((run_dir / "train" / "record.json").read_text())
    assert record["configuration"]["strategy"] == "estimator"
    assert record["environment"]["estimators"].partition(" ")[0] in {"lightgbm", "scikit-learn"}
    assert record["artefacts"]["weights"] == facts(run_dir, "train")["weights_sha256"]
    assert facts(run_dir, "train")["cost"]["peak_memory_mb"] > 0


def test_trained_again_it_is_the_same_byte_for_byte(first):
    """`reproduce` finds the recorded hash of what was learned, the same graph and the same metrics."""
    settings, run_dir = first
    registered(run_dir, 1)
    found = reproduce(settings, trips.CASE, 1)
    assert (found["identical"], found["layer"]) == (True, None), found["reason"]
