"""A case of texts and classes through the same live stack.

Airflow trains on two ranks, Triton and the gateway serve, a drift run looks back.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from embedded.demo import scoring, traffic
from pipelines import cases, ledger
from pipelines.cases.sources import BESIDE
from pipelines.cases.triage.source import DOWNLOADED, PARQUET
from pipelines.contracts import Window
from pipelines.data import log
from pipelines.drift_report import DriftReport
from pipelines.errors import PerennialError
from pipelines.params_file import load_params
from pipelines.storage import read_manifest

CASE = "triage"
FIRST, NEXT = datetime(2015, 1, 1, tzinfo=UTC), datetime(2015, 4, 1, tzinfo=UTC)
PER_MONTH = 80
pytestmark = pytest.mark.slow


def _write_reports(path):
    """Made-up reports, 20 a day from 2014 on, for a machine that has no real ones."""
    fields = cases.load_fields(CASE)
    generator = np.random.default_rng(0)
    count = 20 * (NEXT - datetime(2014, 1, 1, tzinfo=UTC)).days
    teams = generator.integers(0, len(fields.classes), count)
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "id": [f"CVE-0-{n}" for n in range(count)],
            "event_time": [datetime(2014, 1, 1, tzinfo=UTC) + n * timedelta(minutes=72) for n in range(count)],
            fields.text.name: [
                f"flaw {n} of the {fields.classes[team].replace('_', ' ')} kind allows attackers to cause damage"
                for n, team in enumerate(teams)
            ],
            fields.label: [fields.classes[team] for team in teams],
        }
    ).write_parquet(path)


@pytest.fixture(scope="module")
def params(small):
    """The parameters that the stack was started with."""
    return load_params(CASE, small / "triage.yaml")


@pytest.fixture(scope="module")
def rows(settings, airflow, params):
    """A first champion, and a quarter of sampled reports that were sent to it, each with its label.

    Returns the rows and the tally.
    """
    if not (BESIDE / PARQUET).exists():
        _write_reports(settings.root / "data" / DOWNLOADED)
    for kind in ("training", "drift"):
        airflow.unpause(f"{CASE}_{kind}")
    run(airflow, "training", {"as_of": FIRST.isoformat(), "trigger": "initial"})
    source, fields = cases.part(CASE, "source"), cases.load_fields(CASE)
    sent = traffic.sampled(
        source.rows(source.resolve(settings, params), Window(start=FIRST, end=NEXT), params), PER_MONTH
    )
    tally = traffic.Tally()
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        traffic.send_rows(gateway, fields, sent, tally)
        traffic.send_labels(gateway, fields, sent.filter(pl.col("label_time") <= NEXT), tally)
    traffic.wait_for_closed_segments(settings.prediction_log, CASE)
    return sent, tally


def run(airflow, kind, conf):
    """One DAG run, which must be green."""
    name = airflow.trigger_dag(f"{CASE}_{kind}", f"test__{conf['as_of'][:10]}", conf)
    found = airflow.wait(f"{CASE}_{kind}", name)
    if found["state"] != "success":
        failed = [task["task_id"] for task in airflow.tasks(f"{CASE}_{kind}", name) if task["state"] == "failed"]
        raise PerennialError(
            "\n".join([f"{name}: {failed}", *(airflow.log(f"{CASE}_{kind}", name, task) for task in failed)])[-4000:]
        )


def test_texts_are_answered_logged_and_right(rows, settings):
    """Every report is answered with a team and its probability, as ONNX Runtime has it on the version named.

    It is logged with all probabilities.
    """
    sent, tally = rows
    head = ledger.head(settings.ledger, CASE)
    assert tally.errors == 0
    assert set(tally.answers) == set(sent["id"])
    assert scoring.unequal_answers(CASE, sent, tally.answers, {head.champion: settings.root / head.bundle}, {}) == 0
    log.compact(settings, CASE)
    logged = log.read_predictions(settings, CASE, Window(start=FIRST, end=NEXT))
    assert sorted(logged["id"]) == sorted(sent["id"])
    scores = np.array(logged["scores"].to_list())
    assert scores.shape == (sent.height, len(cases.load_fields(CASE).classes))
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    names = cases.load_fields(CASE).classes
    assert [tally.answers[id_][2] for id_ in logged["id"]] == [names[position] for position in logged["prediction"]]


@pytest.mark.usefixtures("rows")
def test_airflow_trained_on_two_ranks(settings):
    """The train task fitted the text model on two ranks that it forked, and left its tokenizer to the bundle."""
    run_dir = settings.run_dir(CASE, FIRST)
    facts = read_manifest(run_dir / "train").facts
    assert (facts["ranks"], facts["strategy"], facts["stopped"]) == (2, "ddp", "finished")
    assert (run_dir / "export" / "tokenizer.json").read_bytes() == (run_dir / "train" / "tokenizer.json").read_bytes()


def test_a_drift_run_judges_texts_and_teams(rows, settings, airflow):
    """A drift run over the quarter compares the texts' profile and the answers with the champion's reference.

    It counts the labels that came.
    """
    sent, _ = rows
    run(airflow, "drift", {"as_of": NEXT.isoformat()})
    report = DriftReport.model_validate_json((settings.run_dir(CASE, NEXT) / "drift" / "report.json").read_bytes())
    assert report.current_rows == sent.height
    assert {"prediction", "score"} & {feature.feature for feature in report.features}
    airflow.wait_quiet([f"{CASE}_training"])
    assert [run["state"] for run in airflow.runs(f"{CASE}_training")] == ["success"] * len(
        airflow.runs(f"{CASE}_training")
    )
