"""Tuning: trials of a declared space, compared on the newest rows; the best one's parameters train the final model."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import yaml

from pipelines.errors import ConfigError
from pipelines.line.facts import TrainFacts, chosen_params
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps.train import _network
from pipelines.training import candidate, choice, compare, search
from pipelines.training.compare import Comparison
from tests.pipelines.steps.test_model_steps import AS_OF, FIELDS
from tests.pipelines.training.test_choice import LINE, NETWORK, NOTHING, TREES, declared, put_rows, trained
from tests.pipelines.verbs import train

SPACE = {
    "models.trees.parameters.num_leaves": {"low": 2, "high": 31, "integer": True},
    "models.trees.parameters.learning_rate": {"low": 0.001, "high": 0.5, "log": True},
    "models.line.parameters.C": {"choices": [0.0001, 0.0003]},
}
POOR = TREES | {"parameters": {"n_estimators": 20, "learning_rate": 0.001}}
POOR_LINE = LINE | {"parameters": {"C": 0.0001}}


def tuned(space=None, models=None, **said) -> Params:
    """The loans case with a space to search in four trials."""
    block = {"trials": 4, "space": space or SPACE} | said
    return declared(models or {"trees": POOR, "line": POOR_LINE}, train={"search": block})


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A training that tuned trees and a regression, and its folder."""
    home = tmp_path_factory.mktemp("searched")
    made = trained(tuned(), home)
    return home, made, json.loads((Settings(home=home).run_dir("loans", AS_OF) / "train" / choice.TRIALS).read_text())


def test_the_best_trial_trains_the_final_model(searched, tmp_path):
    """The best of all trials is chosen, and the final model has the weights of one declared with its parameters."""
    _, made, trials = searched
    assert [one["name"] for one in trials] == [f"{name}.{n}" for n in range(4) for name in ("trees", "line")]
    every = [*made.facts["candidates"], *trials]
    best = min(every, key=lambda one: one["value"])
    assert made.facts["chosen"]["trial"] == best["name"]
    chosen = chosen_params(tuned(), TrainFacts.of(made))
    for path, value in best["values"].items():
        assert chosen.model.parameters[path.split(".")[-1]] == value
    assert trained(chosen, tmp_path).facts["weights_sha256"] == made.facts["weights_sha256"]
    assert made.files[choice.TRIALS]


def test_trials_keep_to_the_space(searched):
    """Every trial tries what the space of its own candidate allows, and nothing of another's."""
    _, _, trials = searched
    for one in trials:
        own = {path for path in SPACE if path.startswith(f"models.{one['candidate']}.")}
        assert set(one["values"]) == own
        if one["candidate"] == "trees":
            leaves = one["values"]["models.trees.parameters.num_leaves"]
            assert isinstance(leaves, int)
            assert 2 <= leaves <= 31
        else:
            assert one["values"]["models.line.parameters.C"] in {0.0001, 0.0003}


def test_a_killed_search_goes_on_as_if_nobody_had(searched, tmp_path):
    """After two SIGKILLs behind trials the next try goes on there, and ends with the same trials and weights."""
    _, whole, trials = searched
    settings = Settings(home=tmp_path / "home")
    run_dir = put_rows(settings)
    (tmp_path / "params").mkdir()
    path = tmp_path / "params" / "loans.yaml"
    path.write_text(yaml.safe_dump(tuned().model_dump(mode="json"), sort_keys=False))
    (tmp_path / "dies").mkdir()
    # Each new process dies behind the first trial that it sees: its own, or one of the process before.
    for _ in range(2):
        (tmp_path / "dies" / "train:trial.1").touch()
        environment = {
            **os.environ,
            "PERENNIAL_HOME": str(settings.root),
            "PERENNIAL_PARAMS_DIR": str(path.parent),
            "PERENNIAL_FAILPOINT": f"@{tmp_path / 'dies'}",
        }
        command = [sys.executable, "-m", "pipelines", "train", "--case", "loans", "--as-of", "2021-01-01"]
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    [folder] = run_dir.glob(f".train.k*/{compare.FOLDER}")
    kept = {one.stem: json.loads(one.read_text())["seconds"] for one in folder.glob("*.*.json")}
    assert set(kept) == {"trees.0"}
    made = train.run(tuned(), settings, run_dir, AS_OF)
    again = json.loads((run_dir / "train" / choice.TRIALS).read_text())
    assert [{**one, "seconds": 0} for one in again] == [{**one, "seconds": 0} for one in trials]
    assert next(one for one in again if one["name"] == "trees.0")["seconds"] == kept["trees.0"]
    assert made.facts["weights_sha256"] == whole.facts["weights_sha256"]


def test_an_unfinished_trial_is_finished_with_its_values(tmp_path):
    """A trial that was killed while it trained is trained again with the values that it had."""
    comparison = _comparison(tuned(trials=1), tmp_path)
    candidates = {name: _declared(comparison, name) for name in ("trees", "line")}

    class Killed(BaseException):
        """Stands for a SIGKILL."""

    asked = []

    def dies(self, name, params, **said):
        asked.append(said["values"])
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Comparison, "of", dies)
        with pytest.raises(Killed):
            list(search.search(comparison, candidates))
    found = list(search.search(comparison, candidates))
    assert [one.name for one in found] == ["trees.0", "line.0"]
    assert found[0].values == asked[0]


def test_minutes_end_the_search(tmp_path, caplog):
    """No trial starts once all of them took the declared minutes; what was tried by then counts."""
    caplog.set_level("INFO")
    comparison = _comparison(tuned(minutes=1e-9), tmp_path)
    candidates = {name: _declared(comparison, name) for name in ("trees", "line")}
    assert [one.name for one in search.search(comparison, candidates)] == ["trees.0"]
    assert "minutes of train.search are spent" in caplog.text


def test_a_trial_that_fails_says_why_and_the_others_go_on(tmp_path, caplog):
    """A trial whose parameters a family refuses is out with its reason; every trial has a line in the log."""
    caplog.set_level("INFO")
    space = {"model.parameters.C": {"choices": [-1.0, 1.0]}}
    made = trained(tuned(space, {"line": LINE}, trials=6), tmp_path)
    trials = json.loads((Settings(home=tmp_path).run_dir("loans", AS_OF) / "train" / choice.TRIALS).read_text())
    refused = [one for one in trials if one["values"]["model.parameters.C"] < 0]
    assert refused
    assert all(one["value"] is None and "C" in one["error"] for one in refused)
    assert made.facts["chosen"]["name"] == "model"
    assert caplog.text.count(" of 6 of model: ") == 6


def test_networks_are_pruned_by_their_epochs(tmp_path):
    """A network that is worse than the median of those before, at the same epoch, is ended there."""
    space = {"train.learning_rate": {"low": 1e-7, "high": 0.05, "log": True}}
    made = trained(tuned(space, {"network": NETWORK}, trials=12), tmp_path)
    trials = json.loads((Settings(home=tmp_path).run_dir("loans", AS_OF) / "train" / choice.TRIALS).read_text())
    pruned = [one for one in trials if one["pruned"]]
    assert pruned
    assert all(one["value"] is None and "pruned after epoch" in one["error"] for one in pruned)
    best = min((one for one in trials if one["value"] is not None), key=lambda one: one["value"])
    assert made.facts["chosen"]["train"] == {"learning_rate": best["values"]["train.learning_rate"]}


def test_watching_changes_no_weights(tmp_path):
    """A network that is watched epoch by epoch has the weights of one that is not."""
    params = declared({"network": NETWORK | {"dropout": 0.3}}, train={"epochs": 3, "ema": 0.9})
    run_dir = put_rows(Settings(home=tmp_path))
    rows, seen = run_dir / "dataset" / "train.parquet", []
    found = set()
    for name, watch in (("plain", None), ("watched", lambda epoch, model: seen.append((epoch, model.eval())))):
        (tmp_path / name).mkdir()
        task = candidate.Task(
            params,
            Settings(home=tmp_path),
            FIELDS,
            _network(params, FIELDS),
            rows,
            tmp_path / f"{name}.work",
            watch=watch,
        )
        found.add(candidate.train(task, tmp_path / name, nullcontext)["weights_sha256"])
    assert len(found) == 1
    assert [epoch for epoch, _ in seen] == [0, 1, 2]


def test_without_optuna_the_error_says_what_to_do(tmp_path, monkeypatch):
    """Where Optuna is not installed, a training that asks for it fails before it trains anything."""
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name == "optuna":
            raise ImportError("no optuna here")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    comparison = _comparison(tuned(), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.search needs Optuna.*make setup"):
        choice.choose(comparison.task, lambda _: NOTHING, nullcontext, lambda _: None)
    assert not comparison.folder.exists()


@pytest.mark.parametrize(
    ("path", "dimension", "said"),
    [
        ("models.trees.family", {"choices": ["lightgbm", "foo"]}, 'does not take "foo"'),
        ("models.tree.parameters.x", {"low": 0, "high": 1}, "there is no model 'tree': choose one of trees, network"),
        ("models.network.hiden", {"choices": [[8]]}, "did you mean 'hidden'?"),
        ("models.network.embedding", {"low": 1, "high": 8}, "or write integer: true"),
        ("models.network.dropout", {"low": 0.0, "high": 1.0}, "does not take 1.0"),
        ("train.lerning_rate", {"low": 0.1, "high": 1}, "did you mean 'learning_rate'?"),
        ("train.search", {"low": 0.1, "high": 1}, "there is no such key"),
        ("model.hidden", {"choices": [[8]]}, "write models.<name>.hidden"),
        ("gate.metric", {"choices": ["brier"]}, "is no path that can be searched"),
        ("train.batch_size", {"low": 0, "high": 64, "integer": True}, "does not take 0"),
        ("train.learning_rate", {"low": 0.1, "high": 0.01}, "0.01 is not above low 0.1"),
        ("train.learning_rate", {"low": 0, "high": 0.01, "log": True}, "log needs numbers above 0"),
    ],
)
def test_a_space_is_checked_when_it_is_read(path, dimension, said, tmp_path):
    """A path that is not there and an end that it does not take are named with their place and what to do."""
    plain = declared({"trees": TREES, "network": NETWORK}).model_dump(mode="json")
    plain["train"]["search"] = {"trials": 3, "space": {path: dimension}}
    file = tmp_path / "loans.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(ConfigError) as error:
        load_params("loans", file)
    assert f"train.search.space.{path}" in str(error.value)
    assert said in str(error.value)


def test_estimators_alone_are_not_asked_for_what_networks_read(tmp_path):
    """A key of the block train that no declared model reads is refused: its trials would all be the same."""
    plain = tuned().model_dump(mode="json")
    plain["train"]["search"]["space"] = {"train.learning_rate": {"low": 0.1, "high": 1.0}}
    file = tmp_path / "loans.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(ConfigError, match=r"train\.search\.space\.train\.learning_rate: no declared model reads it"):
        load_params("loans", file)


def _comparison(params: Params, home) -> Comparison:
    rows = put_rows(Settings(home=home)) / "dataset" / "train.parquet"
    task = candidate.Task(params, Settings(home=home), FIELDS, NOTHING, rows, home / "work")
    return Comparison(task, lambda _: NOTHING, nullcontext)


def _declared(comparison: Comparison, name: str):
    params = comparison.task.params
    return comparison.of(name, params.alone(params.models[name]))
