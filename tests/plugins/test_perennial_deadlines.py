"""perennial/airflow/deadlines.py: a run that is late is told to people, by whoever can."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from perennial.airflow.deadlines import late, rollout
from pipelines.alerts.sinks import Undelivered
from pipelines.case_files import CASES_ROOT
from pipelines.params import RolloutParams
from pipelines.params_file import load_params
from tests.compose.stackfile import ROOT
from tests.pipelines.alerts.test_sinks import receiver

DUE = datetime(2026, 6, 1, 4, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _missed(due):
    return {
        "dag_run": {"dag_id": "bank_training", "dag_run_id": "drift__e1"},
        "deadline": {"id": "d", "deadline_time": due},
    }


@pytest.mark.parametrize("due", [DUE, DUE.isoformat()])
def test_a_late_run_is_told_with_owner_and_runbook(monkeypatch, due):
    """The webhook gets a warning that names the run and since when it is late.

    It also names who should look and where it says what to do.
    """
    with receiver(200) as (url, bodies):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        assert asyncio.run(late("bank", _missed(due))) == "told log, webhook"
    [(_, body)] = bodies
    for part in (
        "*WARNING* bank",
        "run drift__e1 of bank_training is late",
        "2026-06-01 04:00",
        "ml-on-call",
        "docs/runbooks.md#run-late",
        "within 24 h",
    ):
        assert part in body["text"]


def test_whoever_takes_no_warnings_is_not_told(monkeypatch, tmp_path):
    """A case that pushes critical alerts only has this one in the log."""
    own = yaml.safe_load((CASES_ROOT / "bank/params.yaml").read_text())
    (tmp_path / "bank.yaml").write_text(yaml.safe_dump({**own, "alerts": {"push": "critical"}}))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", "http://127.0.0.1:9/secret")
    assert asyncio.run(late("bank", _missed(DUE))) == "told log"


def test_a_sink_that_fails_is_an_error_without_its_address(monkeypatch):
    """Airflow keeps the error of a callback: it says which sink, and not where the secret address is."""
    with receiver(404) as (url, _):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        with pytest.raises(Undelivered, match="webhook did not take the notice: HTTP 404") as caught:
            asyncio.run(late("bank", _missed(DUE)))
    assert "secret" not in str(caught.value)


def test_the_runbook_has_its_section():
    """What the message links to is there, with the same severity and the three parts of every section."""
    section = (ROOT / "docs/runbooks.md").read_text().partition("\n## run-late\n")[2].partition("\n## ")[0]
    assert section.startswith("*warning.*")
    assert all(part in section for part in ("**Means.**", "**Look at.**", "**Do.**"))


def test_an_experiment_may_last():
    """A rollout with an experiment is late a quarter of a year later than one that goes from step to step."""
    params = load_params("bank")
    steps = RolloutParams.model_validate({"steps": [0.5, 1.0]})
    asks = RolloutParams.model_validate(
        {"steps": [0.5, 1.0], "experiment": {"outcome": "revenue", "horizon_hours": 72, "units": 20_000}}
    )
    plain, asking = (rollout(params.model_copy(update={"rollout": plan})) for plan in (steps, asks))
    assert (plain, asking - plain) == (timedelta(days=6), timedelta(days=90))
