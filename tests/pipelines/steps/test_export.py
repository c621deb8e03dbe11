"""What an export ships: a variant whose answers hang on their neighbours does not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from pipelines.cases import load_fields
from pipelines.data import log as prediction_log
from pipelines.errors import IntegrityError
from pipelines.export import bundle, variants
from pipelines.files import file_sha256, write_atomic
from pipelines.line import runner
from pipelines.line.order import EXPORT
from pipelines.line.step import Run
from pipelines.params import ExportParams
from pipelines.settings import Settings
from tests.encoders import write_encoder
from tests.pipelines.export.texts import write_dynamic
from tests.pipelines.manifests import renew
from tests.pipelines.steps import test_train as texts
from tests.pipelines.steps.test_train import AS_OF
from tests.pipelines.verbs import Verb, export, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Settings, parameters that ship int8, and the folder of a run with a trained text model and a holdout."""
    home = tmp_path_factory.mktemp("export")
    settings = Settings(home=home)
    params = texts.reports(write_encoder(home / "encoder"), epochs=1).model_copy(
        update={"export": ExportParams(int8=True, ship="int8")}
    )
    run_dir = texts.put_reports(settings)
    rows = pl.read_parquet(run_dir / "dataset" / "train.parquet").with_columns(
        event_time=pl.lit(AS_OF - timedelta(days=1))
    )
    for part, own in (("train", rows), ("holdout", rows.tail(30))):
        own.write_parquet(run_dir / "dataset" / f"{part}.parquet")
    renew(run_dir / "dataset")
    train.run(params, settings, run_dir, AS_OF)
    return settings, params, run_dir


def test_int8_ships_where_it_may(trained):
    """Weights as int8 keep every row's answer its own, so the file ships, says so in its bundle, and is smaller."""
    settings, params, run_dir = trained
    facts = export.run(params, settings, run_dir, AS_OF).facts
    assert facts["precision"] == json.loads((run_dir / "export" / "bundle.json").read_text())["precision"] == "int8"
    assert facts["variants"]["int8"]["file"] == "model.onnx"
    assert facts["variants"]["int8"]["refused"] is None
    assert max(facts["variants"][name]["neighbours"] for name in ("fp32", "int8")) < 1e-6
    assert facts["variants"]["int8"]["bytes"] < facts["variants"]["fp32"]["bytes"]


def test_a_variant_that_mixes_rows_is_not_shipped(trained, monkeypatch, caplog):
    """An int8 variant whose answers hang on their neighbours stays beside the fp32 one, which ships.

    Facts and log say why.
    """
    settings, params, run_dir = trained

    def mixing(folder):
        write_dynamic(folder, folder / variants.INT8)
        return folder / variants.INT8

    monkeypatch.setattr(variants, "write_int8", mixing)
    facts = Verb(replace(EXPORT, version=-1)).run(params, settings, run_dir, AS_OF).facts
    assert facts["precision"] == json.loads((run_dir / "export" / "bundle.json").read_text())["precision"] == "fp32"
    assert facts["variants"]["fp32"]["file"] == "model.onnx"
    assert "with the rows beside it" in facts["variants"]["int8"]["refused"]
    assert "does not ship" in caplog.text
    assert file_sha256(run_dir / "export" / "model.onnx") != file_sha256(run_dir / "export" / variants.INT8)


def test_a_model_that_mixes_rows_is_no_bundle(trained, monkeypatch):
    """If even the fp32 answer hangs on its neighbours, there is no export, and the error says what to do."""
    settings, params, run_dir = trained
    monkeypatch.setattr(bundle, "neighbours", lambda *_: 0.01)
    with pytest.raises(IntegrityError, match="take out of the model what mixes rows"):
        Verb(replace(EXPORT, version=-2)).run(params, settings, run_dir, AS_OF)


def test_labels_of_the_baseline_are_part_of_the_key(trained):
    """A label that the baseline takes from the log gives the export another key, as late rows do.

    One that changes nothing does not.
    """
    settings, params, run_dir = trained
    params = params.model_copy(
        update={"label_delay_days": 0.5, "drift": params.drift.model_copy(update={"min_rows": 1})}
    )
    fields = load_fields(params.case)
    same, other = pl.read_parquet(run_dir / "dataset" / "holdout.parquet").head(2).to_dicts()

    def key() -> str:
        run = Run(params, settings, AS_OF, folder=run_dir)
        read = runner.reads(EXPORT, run)
        return runner.key(EXPORT, run, read, runner.home(EXPORT).work(run, read))

    def key_with(row: dict, label: int) -> str:
        stated = (row["event_time"] + timedelta(hours=1)).isoformat()
        line = {"prediction_id": row["id"], "label": label, "revision": 0, "event_time": stated, "received_at": stated}
        segment = settings.prediction_log / params.case / "labels" / f"{row['id']}-000001.jsonl"
        write_atomic(segment, json.dumps(line).encode() + b"\n")
        prediction_log.compact(settings, params.case)
        return key()

    before = key()
    assert key_with(same, same[fields.label]) == before
    assert key_with(other, (other[fields.label] + 1) % len(fields.classes)) != before
