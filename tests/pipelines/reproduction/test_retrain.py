"""A version is trained again from its record: equal weights, or the first layer that differs is named."""

import json
import shutil

import polars as pl
import pytest
import torch

from pipelines import cli, storage
from pipelines.cases import load_fields, tabular
from pipelines.errors import ConfigError
from pipelines.files import file_sha256
from pipelines.params import EstimatorParams, SearchParams
from pipelines.reproduction import retrain
from pipelines.reproduction.find import find
from pipelines.settings import Settings
from pipelines.training import choice, loop, record
from tests.encoders import write_encoder
from tests.pipelines.reproduction import runs

pytestmark = pytest.mark.slow

CASE = "loans"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A state folder with version 3 of a tabular case."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    runs.register(settings, runs.small(CASE), 3)
    return settings


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A state folder with version 1 of the text case, on a tiny encoder and with an int8 variant."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    runs.register(settings, runs.small_text(write_encoder(tmp_path_factory.mktemp("encoder"))), 1)
    return settings


@pytest.fixture
def home(original, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(original.root, tmp_path / "home")
    return Settings(home=tmp_path / "home")


def other_training(monkeypatch):
    """Make every training from here on come out otherwise, without a trace in any file."""
    monkeypatch.setattr(tabular, "SCALED_LIMIT", 0.5)


def test_a_text_version_has_a_complete_bundle(reports):
    """Tokenizer, contract, feature spec and int8 variant are exported, and the facts say what int8 changes."""
    version = find(reports, "triage", 1)
    export = version.manifests["export"]
    assert {
        "model.onnx",
        "model.int8.onnx",
        "tokenizer.json",
        "bundle.json",
        "fields.json",
        "contract.json",
        "spec.json",
        "reference.parquet",
    } == set(export.files)
    assert (
        export.files["tokenizer.json"]
        == version.manifests["train"].files["tokenizer.json"]
        == export.facts["tokenizer_sha256"]
    )
    assert (export.facts["precision"], export.facts["classes"]) == ("fp32", list(load_fields("triage").classes))
    change, variants = export.facts["variants"]["int8"]["change"], export.facts["variants"]
    assert variants["int8"]["bytes"] < variants["fp32"]["bytes"]
    assert 0 <= change["label_agreement"] <= 1
    assert {"log_loss", "macro_f1"} <= set(change["metrics"])


def test_a_text_version_is_reproduced_bit_by_bit(reports, monkeypatch, capfd):
    """On 200 reports the command says that the weights have the recorded hash, exits with 0 and leaves nothing."""
    before = sorted(reports.root.rglob("*"))
    monkeypatch.setenv("PERENNIAL_HOME", str(reports.root))
    capfd.readouterr()
    assert cli.main(["reproduce", "--case", "triage", "--version", "1"]) == 0
    answer = json.loads(capfd.readouterr().out)
    recorded = find(reports, "triage", 1).manifests["train"].facts["weights_sha256"]
    assert answer["weights"] == {"recorded": recorded, "reproduced": recorded}
    assert (answer["identical"], answer["layer"], answer["differences"]) == (True, None, {})
    assert recorded[:12] in answer["reason"]
    assert sorted(reports.root.rglob("*")) == before


def test_a_tabular_version_is_reproduced(original):
    """Rows, parameters and code as they were give the same weights, the same file and the same metrics."""
    answer = retrain.reproduce(original, CASE, 3)
    assert answer["identical"], answer["reason"]
    assert (answer["version"], answer["as_of"]) == (3, runs.AS_OF.isoformat())


def test_what_labels_mean_since_is_no_matter_of_a_version_of_before(home):
    """A version is trained again from its own rows, by the commit that trained it: later classes are none of it."""
    kept = home.lake_dir / CASE / "target.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text('{"classes": ["fine", "bad"], "unit": null, "texts": {}}')
    logged = home.prediction_log / CASE / "labels" / "a.jsonl"
    logged.parent.mkdir(parents=True)
    logged.touch()
    answer = retrain.reproduce(home, CASE, 3)
    assert answer["identical"], answer["reason"]


def test_a_training_that_spent_its_budget_is_stopped_at_the_same_step(tmp_path, monkeypatch):
    """The reproduction of a training that spent its budget ends after the steps that the minutes were enough for."""
    settings = Settings(home=tmp_path)
    run_dir = runs.register(settings, runs.small(CASE, budget_minutes=1e-9), 1)
    facts = storage.read_manifest(run_dir / "train").facts
    assert (facts["stopped"], facts["steps"]) == ("budget", 1)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 0.0)
    answer = retrain.reproduce(settings, CASE, 1)
    assert answer["identical"], answer["reason"]


def test_what_was_chosen_among_several_is_trained_alone(tmp_path, monkeypatch):
    """A version that was chosen and tuned is trained again from its record, without comparing anything again."""
    search = SearchParams.model_validate(
        {"trials": 2, "minutes": 5.0, "space": {"models.line.parameters.C": {"low": 0.001, "high": 1.0, "log": True}}}
    )
    params = runs.small(CASE, search=search)
    models = {"network": params.model, "line": EstimatorParams(kind="estimator", family="sklearn:LogisticRegression")}
    settings = Settings(home=tmp_path)
    runs.register(settings, params.model_copy(update={"models": models}), 1)
    assert find(settings, CASE, 1).manifests["train"].facts["chosen"]["name"] in models
    monkeypatch.setattr(choice, "choose", None)
    answer = retrain.reproduce(settings, CASE, 1)
    assert answer["identical"], answer["reason"]


def test_changed_rows_are_the_data_layer(home):
    """A training file that is not what it was is found in the data, before everything that follows from it."""
    path = find(home, CASE, 3).folders["dataset"] / "train.parquet"
    label = load_fields(CASE).label
    rows = pl.read_parquet(path)
    rows.with_columns(pl.col(label).reverse()).write_parquet(path)
    answer = retrain.reproduce(home, CASE, 3)
    assert (answer["identical"], answer["layer"]) == (False, "data")
    (row,) = answer["differences"]["data"]
    assert (row["what"], row["found"]) == ("files.train.parquet", file_sha256(path))
    assert "execution" in answer["differences"]
    assert answer["weights"]["recorded"] != answer["weights"]["reproduced"]


def test_another_source_is_the_code_layer(home, monkeypatch):
    """Where a module that did the work is not the recorded one, the code is named, before the losses that follow."""
    other_training(monkeypatch)
    monkeypatch.setattr(record, "source_sha256", lambda _module: "f" * 64)
    answer = retrain.reproduce(home, CASE, 3)
    assert (answer["identical"], answer["layer"]) == (False, "code")
    assert {row["found"] for row in answer["differences"]["code"]} == {"f" * 64}
    assert list(answer["differences"])[:2] == ["code", "execution"]


def test_another_processor_is_the_environment_layer(home, monkeypatch):
    """Where only the processor's capability is another one, the environment is named, with both values."""
    other_training(monkeypatch)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    answer = retrain.reproduce(home, CASE, 3)
    assert (answer["identical"], answer["layer"]) == (False, "environment")
    assert [row["found"] for row in answer["differences"]["environment"]] == ["ANOTHER"]


def test_a_training_that_goes_another_way_is_the_execution_layer(home, monkeypatch):
    """If nothing recorded differs but the losses do, the first step at which they differ is named."""
    other_training(monkeypatch)
    answer = retrain.reproduce(home, CASE, 3)
    assert (answer["identical"], answer["layer"]) == (False, "execution")
    (row,) = answer["differences"]["execution"]
    assert row["what"].startswith("loss at step ")
    assert row["recorded"] != row["found"]


def test_another_judgement_of_the_same_weights_is_the_evaluation_layer(home, monkeypatch):
    """Equal weights whose holdout metrics are not the recorded ones are not reproduced."""
    measure = retrain.metrics_of
    monkeypatch.setattr(
        retrain, "metrics_of", lambda fields: lambda label, score: {**measure(fields)(label, score), "log_loss": 9.0}
    )
    answer = retrain.reproduce(home, CASE, 3)
    assert (answer["identical"], answer["layer"]) == (False, "evaluation")
    assert answer["weights"]["recorded"] == answer["weights"]["reproduced"]
    assert answer["reason"].startswith("the weights are the same, but evaluation differs: log_loss: ")


def test_parameters_that_are_none_are_refused(home):
    """A record whose parameters this code does not know says which commit does."""
    version = find(home, CASE, 3)
    path = version.folders["train"] / "record.json"
    record = json.loads(path.read_text())
    record["configuration"]["params"]["train"]["momentum"] = 0.9
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"momentum[\s\S]*check out commit"):
        retrain.recorded_params(version)
