"""A case that predicts a number, through the real steps: from its source to a verdict and a served answer."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Verdict
from pipelines.drift.profile import counts
from pipelines.drift.reference import FILE
from pipelines.export import scoring
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop, trips
from tests.pipelines.verbs import dataset, evaluate, export, gate, ingest, train, validate

AS_OF = trips.START + timedelta(days=25)
FIRST = (ingest, validate, dataset, train, export, evaluate, gate)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The case among those that there are."""
    with shop.installed(tmp_path_factory.mktemp("cases")) as root:
        trips.write(root)
        yield root


@pytest.fixture(scope="module")
def first(installed, tmp_path_factory):
    """A first run up to its verdict: settings and folder."""
    settings = Settings(home=tmp_path_factory.mktemp("numbers"), data_dir=tmp_path_factory.mktemp("data"))
    trips.rows(2500).write_parquet(settings.data_dir / "trips.parquet")
    params = load_params(trips.CASE)
    run_dir = settings.run_dir(trips.CASE, AS_OF)
    for step in FIRST:
        step.run(params, settings, run_dir, AS_OF)
    return settings, run_dir


def facts(run_dir, step):
    """What a step said."""
    return storage.read_manifest(run_dir / step).facts


def test_rows_and_labels_are_numbers(first):
    """Training rows hold float64 labels of those that had arrived, and the base rate is their mean."""
    _, run_dir = first
    rows = pl.read_parquet(run_dir / "dataset" / "train.parquet")
    assert rows.schema["minutes"] == pl.Float64
    assert facts(run_dir, "dataset")["base_rate"] == pytest.approx(rows["minutes"].mean())
    assert rows["event_time"].max() < AS_OF - timedelta(days=1)


def test_the_network_learns_the_number(first):
    """The training's loss is a share of the labels' variance, and the holdout's error is near the noise."""
    _, run_dir = first
    curve = facts(run_dir, "train")["curve"]
    assert 0.2 < curve[0] < 1.5 > 10 * curve[-1]
    judged = facts(run_dir, "evaluate")
    assert trips.NOISE * 0.8 < judged["challenger"]["rmse"] < trips.NOISE * 1.3
    assert judged["challenger"]["r2"] > 0.9
    assert judged["base_rate"]["rmse"] > 20
    assert {name: part["n"] for name, part in judged["slices"].items()}.keys() == {"road=country", "road=town"}


def test_the_graph_answers_in_the_unit_and_within_its_bounds(first):
    """What ships holds the inverse: answers are minutes, never below 0, and as torch's to a hundred-thousandth."""
    _, run_dir = first
    made = facts(run_dir, "export")
    assert made["parity"] < 1e-5
    assert made["unit"] == "min"
    fields = load_fields(trips.CASE)
    odd = trips.rows(300, seed=9).with_columns(km=pl.lit(0.0), rain=pl.lit(0.0), road=pl.lit("country"))
    answers = scoring.score(run_dir / "export", pl.concat([odd, trips.rows(300, seed=8)]), fields)
    assert (answers >= 0).all()
    truth = trips.rows(300, seed=8)["minutes"].to_numpy()
    assert np.sqrt(np.mean((answers[300:] - truth) ** 2)) < trips.NOISE * 1.3


def test_the_first_verdict_is_about_minutes(first):
    """The gate compares with the training rows' mean by RMSE, in minutes, in all and by slice."""
    settings, run_dir = first
    verdict = Verdict.model_validate_json((run_dir / "gate" / "verdict.json").read_bytes())
    assert (verdict.decision, verdict.evidence.metric, verdict.evidence.opponent) == ("promote", "rmse", "base_rate")
    judged = facts(run_dir, "evaluate")
    lift = verdict.evidence.lift
    assert lift.value == pytest.approx(judged["base_rate"]["rmse"] - judged["challenger"]["rmse"])
    assert 0 < lift.low < lift.value < lift.high
    assert verdict.evidence.positives > 0.9 * verdict.evidence.n
    assert {piece.name for piece in verdict.evidence.slices} == {"road=country", "road=town"}
    assert ledger.verdicts(settings.ledger, trips.CASE)


def test_the_reference_knows_how_wrong_the_number_is(first):
    """The score is profiled in minutes by the labels' scale; the baseline holds squared errors and their cap."""
    _, run_dir = first
    found = counts.read(run_dir / "export" / FILE)
    judged = facts(run_dir, "evaluate")
    assert found.columns["score"].n == judged["n"]
    assert found.columns["score"].bins.size > 50
    assert "entropy" not in found.columns
    assert found.baseline["loss"] == pytest.approx(judged["challenger"]["rmse"] ** 2)
    assert 0 < found.baseline["capped_rate"] < 0.5
    assert sum(found.baseline["labels"]["counts"]) == facts(run_dir, "dataset")["train_rows"]
    assert "calibration" not in found.baseline
