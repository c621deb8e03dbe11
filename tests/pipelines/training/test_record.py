"""The record of a training: complete, plain, and equal for equal trainings."""

import json

import pytest

from pipelines.contracts import Manifest
from pipelines.params_file import load_params
from pipelines.training import record
from tests.pipelines.candidates import month

FACTS = {
    "rows": 5,
    "strategy": "single",
    "precision": "fp32",
    "weights_sha256": "w",
    "steps": 2,
    "epochs": 1,
    "stopped": "finished",
    "resumed_from": None,
}


def _record(folder, **changes):
    dataset = Manifest(
        step="dataset",
        case="bank",
        as_of=month(1),
        key="d",
        inputs={},
        files={"train.parquet": "t"},
        facts={"rule": "window"},
        provenance={},
    )
    given = {
        "params": load_params("bank"),
        "as_of": month(1),
        "dataset": dataset,
        "source": {"name": "bank_marketing", "kind": "real", "sha256": "s", "notice": "CC BY 4.0"},
        "fields_hash": "f",
        "modules": ("pipelines.training", "pipelines.fields"),
        "case_code": "c" * 64,
        "facts": FACTS,
        "base_weights": None,
        "champion": None,
        "governance": {"actor": "ada", "trigger": "drift", "reason": "drift episode e1", "episode": "e1"},
    }
    return record.training_record(folder, **given | changes)


def test_all_eight_categories(tmp_path):
    """The record has all of its categories, as JSON that comes back the same."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.6}\n{"step": 2, "validation_loss": 0.5}\n'
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    found = _record(tmp_path)
    assert set(found) == {"version", *record.CATEGORIES}
    record.write(tmp_path, found)
    assert json.loads((tmp_path / record.FILE).read_text()) == json.loads(json.dumps(found))
    assert len(found["code"]["sources"]["pipelines.training"]) == 64
    assert found["code"]["case"] == "c" * 64
    assert found["data"]["source"] == {"name": "bank_marketing", "kind": "real", "sha256": "s"}
    assert len(found["features"]["tokenizer"]) == 64
    assert (found["configuration"]["seed"], found["configuration"]["world_size"]) == (
        load_params("bank").train.seed,
        load_params("bank").train.ranks,
    )
    assert (found["metrics"]["loss_first"], found["metrics"]["loss_last"], found["metrics"]["validations"]) == (
        0.7,
        0.6,
        1,
    )
    assert all(
        found["environment"][name]
        for name in ("lock", "python", "torch", "torch_config", "cpu", "cpu_capability", "threads")
    )
    about = found["governance"]
    assert (about["actor"], about["reason"], about["as_of"], about["notice"]) == (
        "ada",
        "drift episode e1",
        month(1).isoformat(),
        "CC BY 4.0",
    )


def test_who_asked_changes_nothing_else(tmp_path):
    """Two trainings that differ in who asked and why have equal records but for governance."""
    one, other = (
        _record(tmp_path),
        _record(tmp_path, governance={"actor": "bob", "trigger": "manual", "reason": "manual", "episode": None}),
    )
    assert [name for name in record.CATEGORIES if one[name] != other[name]] == ["governance"]


def test_a_training_without_a_loop_has_no_curves(tmp_path):
    """Where there is no metrics file the record says so."""
    assert _record(tmp_path)["metrics"]["file"] is None


def test_sources_are_told_apart():
    """Modules and packages have hashes of their own; a module that does not exist is an error."""
    hashes = {
        record.source_sha256(name) for name in ("pipelines.training", "pipelines.training.loop", "pipelines.fields")
    }
    assert len(hashes) == 3
    with pytest.raises(ModuleNotFoundError):
        record.source_sha256("pipelines.nothing")
