"""A case that predicts a number, through the real steps: from its source to a verdict and a served answer."""

from __future__ import annotations

import shutil
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from embedded import triton as embedded
from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order, Verdict
from pipelines.deploy import rollout
from pipelines.drift.profile import counts
from pipelines.drift.reference import FILE
from pipelines.drift_report import read_report
from pipelines.export import scoring
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop, trips
from tests.pipelines.conftest import free_port
from tests.pipelines.data import loglines
from tests.pipelines.verbs import (
    dataset,
    drift,
    evaluate,
    export,
    gate,
    headroom,
    ingest,
    profile,
    report,
    train,
    validate,
)
from tests.serving.gateway import world

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
    home, data = tmp_path_factory.mktemp("numbers"), tmp_path_factory.mktemp("data")
    settings = Settings(home=home, data_dir=data, mlflow_url=f"http://127.0.0.1:{free_port()}")
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
    # The gate caps the largest hundredth of the squared errors.
    assert 0 < judged["base_rate"]["rmse"] - judged["challenger"]["rmse"] - lift.value < 0.05 * lift.value
    assert 0 < lift.low < lift.value < lift.high
    assert verdict.evidence.positives > 0.9 * verdict.evidence.n
    assert {piece.name for piece in verdict.evidence.slices} == {"road=country", "road=town"}
    assert ledger.verdicts(settings.ledger, trips.CASE)


def test_a_first_model_may_be_held_against_a_median_for_each_road(first, tmp_path):
    """A declared baseline is fitted on the training rows, named by the verdict, and measured beside the candidate."""
    _, run_dir = first
    alone = Settings(home=tmp_path)
    again = alone.run_dir(trips.CASE, AS_OF)
    for name in ("dataset", "export"):
        shutil.copytree(run_dir / name, again / name)
    params = load_params(trips.CASE)
    by_road = params.gate.model_copy(update={"metric": "mae", "baseline": "road"})
    for step in (evaluate, gate):
        step.run(params.model_copy(update={"gate": by_road}), alone, again, AS_OF)
    verdict = Verdict.model_validate_json((again / "gate" / "verdict.json").read_bytes())
    assert "against the training rows' median by road" in verdict.reason
    train, holdout = (pl.read_parquet(run_dir / "dataset" / f"{name}.parquet") for name in ("train", "holdout"))
    medians = dict(train.group_by("road").agg(pl.col("minutes").median()).iter_rows())
    expected = (holdout["minutes"] - holdout["road"].replace_strict(medians)).abs().mean()
    assert verdict.evidence.champion["mae"] == pytest.approx(expected)
    assert facts(run_dir, "evaluate")["base_rate"]["mae"] > expected + 1
    lift = expected - facts(again, "evaluate")["challenger"]["mae"]
    assert verdict.evidence.lift.value == pytest.approx(lift)


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


@pytest.mark.slow
def test_the_gateway_answers_what_the_model_does(first, triton_server):
    """A real Triton is proved with the bundle, and a raw row gets the number that ONNX Runtime gives, by its size."""
    _, run_dir = first
    settings = embedded.settings(*triton_server)
    fields = load_fields(trips.CASE)
    rollout.offer(settings, fields, 1, run_dir / "export")
    (settings.root / "api_key").write_text(world.KEY + "\n")
    world.release(settings, 1, case=trips.CASE)
    rows = trips.rows(50, seed=77).with_columns(km=pl.when(pl.int_range(pl.len()) < 2).then(100.0).otherwise("km"))
    sent = [{"prediction_id": f"n{at}", **row} for at, row in enumerate(rows.select(fields.names).to_dicts())]
    with world.client(settings) as http:
        answer = http.post(f"/v1/cases/{trips.CASE}/predict", json={"rows": sent})
        assert answer.status_code == 200, answer.text
        told = np.array([row["prediction"] for row in answer.json()["rows"]])
    expected = scoring.score(run_dir / "export", rows, fields)
    assert np.abs(told - expected).max() <= 1e-5 * np.abs(expected).max()


# --- served -------------------------------------------------------------------------------------

QUIET, SLOW = 3, 4
"""Days that are served as they were, and then days on which trips take half as long again."""
DAYS = QUIET + SLOW


def serve(settings, bundle, rows, segment):
    """Log the answers of version 1 to ``rows`` as the gateway does, and their labels when they arrive."""
    fields = load_fields(trips.CASE)
    lines = [
        line | {"score": float(answer), "prediction": float(answer)}
        for line, answer in zip(loglines.predictions(rows, fields), scoring.score(bundle, rows, fields), strict=True)
    ]
    loglines.write(settings, trips.CASE, "predictions", segment, lines)
    loglines.write(settings, trips.CASE, "labels", segment, loglines.labels(rows, fields))


@pytest.fixture(scope="module")
def watched(first):
    """The first champion in service: a drift run after every day, the page after the last one."""
    settings, run_dir = first
    bundle = run_dir / "export"
    order = Order(
        case=trips.CASE,
        after=0,
        champion=1,
        candidate_key=storage.read_manifest(bundle).key,
        bundle=str(bundle.relative_to(settings.root)),
        action="promote",
        trigger="initial",
        reason="test",
        actor="test",
        as_of=AS_OF,
    )
    ledger.append(settings.ledger, order)
    params = load_params(trips.CASE)
    params = params.model_copy(update={"drift": params.drift.model_copy(update={"evidently": "daily"})})
    for number in range(DAYS):
        day = AS_OF + timedelta(days=number)
        slower = 1.0 if number < QUIET else 1.5
        serve(
            settings, bundle, trips.rows(200, start=day, per_day=200, seed=20 + number, slower=slower), f"day{number}"
        )
        as_of = day + timedelta(days=1)
        for step in (profile, headroom, drift):
            step.run(params, settings, settings.run_dir(trips.CASE, as_of), as_of)
    report.run(params, settings, settings.run_dir(trips.CASE, as_of), as_of)
    return settings, params


def found(settings, number):
    """The drift report of the run after the day of this number."""
    return read_report(settings.run_dir(trips.CASE, AS_OF + timedelta(days=number + 1)) / "drift")


def test_a_quiet_day_says_how_wrong_the_number_is(watched):
    """Labels of a day before give RMSE and MAE in minutes, no alarm and no drift."""
    settings, _ = watched
    told = found(settings, QUIET - 1)
    assert not [feature.feature for feature in told.features if feature.drifted]
    assert "score" in {feature.feature for feature in told.features}
    assert (told.labels.rows, told.policy.alarmed) == (200, False)
    assert told.labels.drop.low < 2.0
    [day] = [one for one in told.performance.rolling if one.end == AS_OF + timedelta(days=1)]
    assert trips.NOISE * 0.8 < day.rmse_low < day.rmse < day.rmse_high < trips.NOISE * 1.6
    assert day.mae < day.rmse
    assert day.log_loss is None
    assert told.performance.estimate is None
    assert told.diagnosis.kind == "none"


def test_other_labels_of_the_same_inputs_are_a_concept_drift(watched):
    """No input moves, the squared error rises: the e-CUSUM alarms, it is named, and a retraining is asked for."""
    settings, _ = watched
    seen = [found(settings, number) for number in range(DAYS)]
    alarmed = next(number for number, told in enumerate(seen) if told.policy.alarmed)
    assert QUIET < alarmed <= QUIET + 2  # labels take a day
    told = seen[alarmed]
    assert told.diagnosis.kind == "concept"
    assert "squared error" in told.diagnosis.why
    assert told.diagnosis.labels.shares == "moved"
    assert not [feature.feature for feature in told.features if feature.drifted]
    asked = [told.policy.trigger for told in seen if told.action == "retrain"]
    assert asked
    assert set(asked) <= {"performance", "headroom"}


def test_a_probe_says_what_a_retraining_would_gain(watched):
    """The gain is in squared minutes, with RMSE beside it, and no share of wrong answers is told."""
    settings, _ = watched
    told = found(settings, DAYS - 1).headroom
    assert told.code == "measured", told.why
    assert (told.unit, told.family, told.errors) == ("min²", "boosting", None)
    assert told.decides is not None
    assert {one.metric for one in told.metrics} == {"rmse"}
    assert told.own_past.low > 0


def test_the_page_speaks_of_minutes(watched):
    """The daily page has RMSE and MAE in minutes, the squared error's rise, and says that nothing is estimated."""
    settings, _ = watched
    as_of = AS_OF + timedelta(days=DAYS)
    folder = settings.run_dir(trips.CASE, as_of)
    page = (folder / "report" / "index.html").read_text()
    for words in ("RMSE in min by day", "RMSE, min", "MAE, min", "squared error", "min²", "capped squared errors"):
        assert words in page, words
    assert "nan" not in page.lower().replace("finance", "")
    assert (folder / "drift" / "drift.html").exists()


def test_the_next_training_learns_from_what_was_served(watched):
    """Served rows with numbers as labels train the next candidate, which beats the champion by RMSE."""
    settings, params = watched
    as_of = AS_OF + timedelta(days=DAYS)
    run_dir = settings.run_dir(trips.CASE, as_of)
    small = params.model_copy(
        update={
            "dataset": params.dataset.model_copy(
                update={"window_days": SLOW, "min_rows": 300, "fallback_rows": 600, "holdout_share": 0.3}
            )
        }
    )
    for step in FIRST:
        step.run(small, settings, run_dir, as_of)
    assert facts(run_dir, "ingest")["origin"] == "log"
    assert pl.read_parquet(run_dir / "dataset" / "train.parquet")["minutes"].dtype == pl.Float64
    verdict = Verdict.model_validate_json((run_dir / "gate" / "verdict.json").read_bytes())
    assert (verdict.decision, verdict.evidence.opponent) == ("promote", "champion")
    judged = facts(run_dir, "evaluate")
    assert judged["champion"]["rmse"] > judged["challenger"]["rmse"]
