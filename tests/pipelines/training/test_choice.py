"""Several families in one training: compared on the newest rows, the best trained on all as if it were alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines import storage
from pipelines.errors import ConfigError, TrainingDiverged
from pipelines.line import runner
from pipelines.line.facts import TrainFacts, chosen_params
from pipelines.line.order import TRAIN
from pipelines.line.step import Run
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.replay.candidates import dataset_key
from pipelines.replay.world import World
from pipelines.settings import Settings
from pipelines.steps.train import _network
from pipelines.training import candidate, compare
from pipelines.training.warm_start import WarmStart
from tests.pipelines.steps.test_model_steps import AS_OF, FIELDS, PARAMS, made_rows
from tests.pipelines.verbs import export, train

ROWS = 600
NETWORK = {"kind": "tabular", "hidden": [8], "embedding": 2, "dropout": 0.0}
TREES = {"kind": "estimator", "family": "lightgbm", "parameters": {"n_estimators": 20, "num_leaves": 7}}
NOTHING = candidate.Network(lambda: None, lambda *_: {})
"""What an estimator needs of a case's code."""
LINE = {"kind": "estimator", "family": "sklearn:LogisticRegression"}


def declared(models: dict, **changes) -> Params:
    """The loans case with these families and a small training."""
    plain = PARAMS.model_dump(mode="json")
    plain["train"] |= {"epochs": 2, "threads": 1, **changes.pop("train", {})}
    plain |= changes
    if len(models) == 1:
        return Params.model_validate_json(json.dumps(plain | {"model": next(iter(models.values()))}))
    return Params.model_validate_json(json.dumps(plain | {"model": next(iter(models.values())), "models": models}))


def put_rows(settings: Settings):
    """A committed dataset of the loans case: the label follows the salary, in a few numbers that repeat."""
    run_dir = settings.run_dir("loans", AS_OF)
    rows = made_rows(ROWS + 100, 0)

    def build(folder):
        rows.head(ROWS).write_parquet(folder / "train.parquet")
        rows.tail(100).write_parquet(folder / "holdout.parquet")
        return {"train_rows": ROWS, "holdout_rows": 100, "base_rate": float(rows.head(ROWS)[FIELDS.label].mean())}

    storage.commit(run_dir / "dataset", case="loans", as_of=AS_OF, key="rows", inputs={}, build=build)
    return run_dir


def trained(params: Params, home, **said):
    """The manifest of a training of these parameters in a state folder of its own."""
    settings = Settings(home=home)
    return train.run(params, settings, put_rows(settings), AS_OF, **said)


@pytest.fixture(scope="module")
def competed(tmp_path_factory):
    """A training that chose between a network of two epochs, trees and a logistic regression; where it lies."""
    home = tmp_path_factory.mktemp("competed")
    params = declared({"network": NETWORK, "trees": TREES, "line": LINE})
    return params, home, trained(params, home)


def test_the_best_on_the_newest_rows_is_chosen(competed):
    """Every candidate is measured by the gate's metric on the newest rows, and the best of them is chosen."""
    params, home, made = competed
    facts = TrainFacts.of(made)
    found = {one["name"]: one for one in facts.candidates}
    assert list(found) == ["network", "trees", "line"]
    assert {one["metric"] for one in found.values()} == {params.gate.metric}
    assert [one["family"] for one in found.values()] == ["tabular", "lightgbm", "sklearn:LogisticRegression"]
    assert all(one["seconds"] > 0 and not one["error"] for one in found.values())
    assert facts.chosen["name"] == min(found, key=lambda name: found[name]["value"])
    assert [path.name for path in Settings(home=home).run_dir("loans", AS_OF).iterdir() if path.name[0] == "."] == []


def test_a_candidate_never_saw_the_rows_that_judge_it(competed, tmp_path):
    """A candidate's value is that of a model of the older rows alone, scored on the newest fifth."""
    params, _, made = competed
    run_dir = put_rows(Settings(home=tmp_path))
    rows = pl.read_parquet(run_dir / "dataset" / "train.parquet")
    rows.head(480).write_parquet(tmp_path / "older.parquet")
    alone = params.alone(params.models["trees"])
    task = candidate.Task(alone, Settings(), FIELDS, NOTHING, tmp_path / "older.parquet", tmp_path / "work")
    (tmp_path / "made").mkdir()
    facts = candidate.train(task, tmp_path / "made", nullcontext)
    newest = rows.tail(120)
    columns = {name: newest[name].to_list() for name in ("id", *FIELDS.reads, FIELDS.label)}
    score, label = compare.answers(task, tmp_path / "made", columns, facts), newest[FIELDS.label].to_numpy()
    loss = -np.log(np.where(label > 0, score, 1 - score)).mean()
    assert next(one["value"] for one in made.facts["candidates"] if one["name"] == "trees") == pytest.approx(loss)


def test_candidates_start_from_nothing(tmp_path):
    """A champion's weights may have seen the newest rows: no candidate that is compared on these starts from them."""
    params = declared({"network": NETWORK, "trees": TREES}, train={"warm_start": True})
    run_dir = put_rows(Settings(home=tmp_path))
    champion = trained(declared({"network": NETWORK}, train={"epochs": 6}), tmp_path / "champion")
    weights = Settings(home=tmp_path / "champion").run_dir("loans", AS_OF) / "train" / "weights.pt"
    found = []
    for start in (None, WarmStart(champion.key, weights, {})):
        rows, work = run_dir / "dataset" / "train.parquet", tmp_path / f"work{len(found)}"
        task = candidate.Task(params, Settings(), FIELDS, _network(params, FIELDS), rows, work, start)
        comparison = compare.Comparison(task, lambda own: _network(own, FIELDS), nullcontext)
        found.append(comparison.of("network", params.alone(params.models["network"])).value)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["network", "trees"])
def test_the_chosen_one_has_the_weights_of_one_declared_alone(name, tmp_path):
    """What was chosen is trained on all rows as if it alone had been declared: equal weights, scales and rows."""
    models = {"network": NETWORK, "trees": TREES}
    worse = {"network": {"parameters": {"n_estimators": 1, "learning_rate": 0.0001}}, "trees": {}}[name]
    competing = declared(models | {"trees": TREES | worse}, train={"epochs": 6})
    chosen = trained(competing, tmp_path / "competing")
    assert chosen.facts["chosen"]["name"] == name
    alone = trained(declared({name: models[name]}, train={"epochs": 6}), tmp_path / "alone")
    for fact in ("weights_sha256", "scales", "rows", "curve"):
        assert chosen.facts[fact] == alone.facts[fact]
    assert chosen.key != alone.key


def test_one_family_is_trained_as_ever(tmp_path):
    """A declaration without models keeps its dump and its key, one with a single one compares nothing."""
    params = declared({"network": NETWORK})
    assert "models" not in params.model_dump()
    assert "compare_share" not in params.train.model_dump()
    run_dir = put_rows(Settings(home=tmp_path))
    run = Run(params, Settings(home=tmp_path), AS_OF, folder=run_dir)
    work = runner.home(TRAIN).work(run, runner.reads(TRAIN, run))
    assert set(work.declared) == {"fields", "base"}
    one = params.model_copy(update={"models": {"network": params.model}})
    assert trained(one, tmp_path / "one").facts.get("chosen") is None


def test_models_are_part_of_the_key(tmp_path):
    """Another candidate or another share of newest rows is another training, even if the same one were chosen."""
    run_dir = put_rows(Settings(home=tmp_path))

    def key(params: Params) -> str:
        run = Run(params, Settings(home=tmp_path), AS_OF, folder=run_dir)
        read = runner.reads(TRAIN, run)
        return runner.key(TRAIN, run, read, runner.home(TRAIN).work(run, read))

    both = {"network": NETWORK, "trees": TREES}
    keys = {
        key(declared(both)),
        key(declared({"network": NETWORK})),
        key(declared(both | {"line": LINE})),
        key(declared(both, train={"compare_share": 0.3})),
    }
    assert len(keys) == 4


def test_a_replay_shares_a_choice_by_what_it_was_made_of(tmp_path):
    """The candidates of a replay are kept by models and search, too: the same declaration has one, another another."""
    run_dir = put_rows(Settings(home=tmp_path))
    both = {"network": NETWORK, "trees": TREES}
    space = {"models.trees.parameters.num_leaves": {"low": 2, "high": 31, "integer": True}}
    settings = Settings(home=tmp_path)
    keys = [
        dataset_key(World(params, FIELDS, settings, None, (), None), settings, run_dir, AS_OF)
        for params in (
            declared(both),
            declared(both),
            declared({"network": NETWORK}),
            declared(both | {"line": LINE}),
            declared(both, train={"search": {"trials": 2, "space": space}}),
            declared(both, train={"search": {"trials": 3, "space": space}}),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_a_candidate_that_fails_is_out_and_says_why(tmp_path, caplog):
    """A network that diverges and a wrong parameter are out with their reasons; the others go on."""
    wrong = LINE | {"parameters": {"leaves": 7}}
    params = declared({"network": NETWORK, "wrong": wrong, "line": LINE}, train={"learning_rate": 1e18})
    made = trained(params, tmp_path)
    found = {one["name"]: one for one in made.facts["candidates"]}
    assert made.facts["chosen"]["name"] == "line"
    assert found["network"]["value"] is None
    assert "lower train.learning_rate" in found["network"]["error"]
    assert "leaves" in found["wrong"]["error"]
    assert "the candidate wrong is out" in caplog.text


def test_no_candidate_left_is_an_error_with_all_reasons(tmp_path):
    """Where every candidate fails, the training fails and names what each of them failed of."""
    wrong = LINE | {"parameters": {"leaves": 7}}
    other = {"kind": "estimator", "family": "sklearn:NoSuchThing"}
    with pytest.raises(TrainingDiverged, match=r"none of 2 candidates.*wrong: .*leaves.*other: .*NoSuchThing"):
        trained(declared({"wrong": wrong, "other": other}), tmp_path)


def test_equal_candidates_are_settled_by_their_order(tmp_path):
    """Of two candidates with one value the first declared is chosen."""
    made = trained(declared({"b": TREES, "a": TREES}), tmp_path)
    assert made.facts["chosen"]["name"] == "b"


def test_a_killed_try_goes_on_with_what_was_compared(competed, tmp_path):
    """After a SIGKILL behind the first candidate the next try takes its value as it is, and ends with equal weights."""
    params, _, whole = competed
    settings = Settings(home=tmp_path / "home")
    run_dir = put_rows(settings)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "loans.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    environment = {
        **os.environ,
        "PERENNIAL_HOME": str(settings.root),
        "PERENNIAL_PARAMS_DIR": str(tmp_path / "params"),
        "PERENNIAL_FAILPOINT": "train:candidate",
    }
    command = [sys.executable, "-m", "pipelines", "train", "--case", "loans", "--as-of", "2021-01-01"]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    [kept] = run_dir.glob(f".train.k*/{compare.FOLDER}/*.json")
    said = json.loads(kept.read_text())
    assert kept.stem == "network"
    made = train.run(params, settings, run_dir, AS_OF)
    assert next(one for one in made.facts["candidates"] if one["name"] == "network")["seconds"] == said["seconds"]
    assert made.facts["weights_sha256"] == whole.facts["weights_sha256"]
    assert made.key == whole.key


def test_export_and_record_are_of_the_chosen_one(competed):
    """The bundle is the chosen model's, and the record holds its parameters with the choice beside them."""
    params, home, made = competed
    settings = Settings(home=home)
    run_dir = settings.run_dir("loans", AS_OF)
    export.run(params, settings, run_dir, AS_OF)
    assert (run_dir / "export" / "model.onnx").exists()
    said = json.loads((run_dir / "train" / "record.json").read_text())["configuration"]
    chosen = chosen_params(params, TrainFacts.of(made))
    assert Params.model_validate_json(json.dumps(said["params"])) == chosen
    assert chosen.model == params.models[made.facts["chosen"]["name"]]
    assert not chosen.compares
    assert said["choice"]["candidates"] == made.facts["candidates"]
    assert set(said["choice"]["models"]) == set(params.models)


def test_several_nodes_train_one_model(tmp_path):
    """Models are compared on one node: several are refused with what to do."""
    settings = Settings(home=tmp_path, nodes=2)
    run_dir = put_rows(settings)
    with pytest.raises(ConfigError, match="compared on one node, PERENNIAL_NODES is 2"):
        train.run(declared({"a": TREES, "b": LINE}), settings, run_dir, AS_OF)


def test_a_rank_metric_needs_both_classes(tmp_path, caplog):
    """Where the newest rows are of one class, candidates are compared by log-loss, with a warning."""
    rows = made_rows(100, 0).with_columns(pl.Series(FIELDS.label, [0, 1] * 40 + [0] * 20, dtype=pl.Int8))
    rows.write_parquet(tmp_path / "rows.parquet")
    params = declared({"a": TREES, "b": LINE}, gate=PARAMS.gate.model_dump(mode="json") | {"metric": "roc_auc"})
    task = candidate.Task(params, Settings(), FIELDS, NOTHING, tmp_path / "rows.parquet", tmp_path / "work")
    comparison = compare.Comparison(task, lambda _: None, nullcontext)
    assert comparison.metric == "log_loss"
    assert "compared by log-loss instead of roc_auc" in caplog.text


def test_the_file_may_leave_the_model_out(tmp_path):
    """In a file models stand for themselves, the first being the model; a model beside them has to be one of them."""
    plain = declared({"a": TREES, "b": NETWORK}).model_dump(mode="json")
    path = tmp_path / "loans.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in plain.items() if name != "model"}, sort_keys=False))
    params = load_params("loans", path)
    assert (list(params.models), params.model.family, params.compares) == (["a", "b"], "lightgbm", True)
    path.write_text(yaml.safe_dump(plain | {"model": LINE}))
    with pytest.raises(ConfigError, match="models: model is none of a, b: remove the block model"):
        load_params("loans", path)
