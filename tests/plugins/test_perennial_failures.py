"""perennial/airflow/failures.py.

A run that failed is told at once, with the task and its last error, by Airflow's own way to do so.
"""

import asyncio
import sys
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock
from uuid import uuid4

import pytest
from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext
from airflow.dag_processing import processor
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from airflow.sdk.execution_time import task_runner

from perennial.airflow.deadlines import late
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator
from pipelines.errors import DataError, TooFewRows, Unavailable
from pipelines.line import runner
from pipelines.line.order import VALIDATE
from tests.compose.stackfile import ROOT
from tests.pipelines.alerts.test_sinks import receiver
from tests.plugins.test_perennial_operators import Pushed, _context

AT = datetime(2026, 6, 1, 3, 7, tzinfo=UTC)
RUN = "scheduled__2026-06-01"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))


@pytest.fixture
def left(monkeypatch):
    """Lets a task fail with an error; what it left under Airflow's XComs, by key."""

    def fail(error: BaseException) -> dict:
        def work(_run, _read):
            raise error

        monkeypatch.setattr(runner, "reads", lambda *_: {})
        module = ModuleType("pipelines.steps.validate")
        module.work = work
        monkeypatch.setitem(sys.modules, "pipelines.steps.validate", module)
        ti = Pushed()
        with pytest.raises(BaseException, match=str(error)):
            StepOperator(task_id="validate", step=VALIDATE, case="bank").execute(_context(ti))
        return dict(ti)

    return fail


def failed(monkeypatch, xcoms: dict, task: str | None = "validate") -> None:
    """What the DAG processor does when the scheduler has marked a run failed.

    Calls the DAG's callback with what the server knows.
    """
    with DAG("bank_training", schedule=None, on_failure_callback=tell_failure("bank")) as dag:
        StepOperator(task_id="validate", step=VALIDATE, case="bank")
    about = {
        "dag_id": "bank_training",
        "run_id": RUN,
        "logical_date": None,
        "run_after": AT,
        "start_date": AT,
        "end_date": AT,
        "state": "failed",
    } | {
        "data_interval_start": AT,
        "data_interval_end": AT,
    }
    run = {
        **about,
        "run_type": "scheduled",
        "conf": {},
        "consumed_asset_events": [],
        "clear_number": 0,
        "partition_key": None,
    }
    ti = {
        "id": uuid4(),
        "task_id": task,
        "dag_id": "bank_training",
        "run_id": RUN,
        "try_number": 4,
        "map_index": -1,
        "dag_version_id": uuid4(),
    }
    asked = DagCallbackRequest(
        filepath="f",
        bundle_name="b",
        bundle_version=None,
        msg="task_failure",
        dag_id="bank_training",
        run_id=RUN,
        context_from_server=DagRunContext(dag_run=run, last_ti=None if task is None else {**ti, "end_date": AT}),
    )
    monkeypatch.setattr(processor, "_get_dag_with_task", lambda *_: (dag, None))
    pulled = lambda _self, task_ids, *, key, map_indexes, default=None: xcoms.get(key, default)  # noqa: E731
    monkeypatch.setattr(task_runner.RuntimeTaskInstance, "xcom_pull", pulled)
    processor._execute_dag_callbacks(SimpleNamespace(), asked, Mock())


def test_a_failed_run_is_told_with_task_and_error(monkeypatch, left):
    """The webhook gets one warning: the run, the task, its last error, who should look and where it says what to do."""
    with receiver(200) as (url, bodies):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        failed(monkeypatch, left(DataError("6% of the rows are bad: look at the quarantine")))
    [(_, body)] = bodies
    for part in (
        "*WARNING* bank: bank_training",
        (
            f"run {RUN} of bank_training failed in its task validate: DataError: 6% of the rows are bad: "
            "look at the quarantine"
        ),
        "ml-on-call",
        "docs/runbooks.md#run-failed",
        "within 24 h",
    ):
        assert part in body["text"]


def test_a_task_that_was_ended_is_told_without_an_error(monkeypatch):
    """A killed process leaves no error, and a deadlocked run no failed task.

    The message names what is known and where to look.
    """
    with receiver(200) as (url, bodies):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        failed(monkeypatch, {})
        failed(monkeypatch, {}, task=None)
    first, second = (body["text"] for _, body in bodies)
    assert (
        f"run {RUN} of bank_training failed in its task validate: it left no error (its process was ended from "
        "outside): see its log"
    ) in first
    assert f"run {RUN} of bank_training failed: task_failure" in second


def test_an_error_that_cannot_be_read_stops_no_message(monkeypatch):
    """Where Airflow does not hand out the XCom people are told all the same."""

    class Away(dict):
        def get(self, key, default=None):
            raise RuntimeError("the API server is away")

    with receiver(200) as (url, bodies):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        failed(monkeypatch, Away())
    [(_, body)] = bodies
    assert (
        f"run {RUN} of bank_training failed in its task validate: its error could not be read from Airflow: see its log"
        in body["text"]
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("6% bad"), "DataError: 6% bad"),
        (Unavailable("Triton is down"), "Unavailable: Triton is down"),
        (ValueError("first line\nsecond"), "ValueError: first line"),
        (AirflowFailException("no such day"), "no such day"),
        (AirflowTaskTimeout("Timeout"), "AirflowTaskTimeout: Timeout"),
        (RuntimeError("x" * 9999), f"RuntimeError: {'x' * 486}"),
    ],
)
def test_a_task_leaves_its_error(left, error, said):
    """Whatever ends a step's task is kept for the message.

    Its kind and the first line of what it says, at most 500 characters.
    """
    assert left(error) == {"error": said}


def test_a_skip_leaves_nothing(left):
    """Too few rows skip the task: that is no failure."""
    assert left(TooFewRows("no label has arrived")) == {}
    assert left(AirflowSkipException("nothing to do")) == {}


def test_an_error_that_cannot_be_kept_hides_nothing(monkeypatch):
    """Where Airflow takes no XCom the task still fails with its own error."""

    class Away(Pushed):
        def xcom_push(self, key, value):
            raise RuntimeError("the API server is away")

    monkeypatch.setattr(runner, "reads", lambda *_: {})
    module = ModuleType("pipelines.steps.validate")
    module.work = lambda *_: (_ for _ in ()).throw(DataError("6% bad"))
    monkeypatch.setitem(sys.modules, "pipelines.steps.validate", module)
    with pytest.raises(AirflowFailException, match="6% bad"):
        StepOperator(task_id="validate", step=VALIDATE, case="bank").execute(_context(Away()))


@pytest.mark.parametrize(("state", "told"), [("failed", 0), ("running", 1), ("queued", 1)])
def test_a_failed_run_is_not_told_again_as_late(monkeypatch, state, told):
    """When the deadline of a run passes that has failed before, nobody is told a second time."""
    context = {
        "dag_run": {"dag_id": "bank_training", "dag_run_id": RUN, "state": state},
        "deadline": {"id": "d", "deadline_time": AT},
    }
    with receiver(200) as (url, bodies):
        monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", url)
        asyncio.run(late("bank", context))
    assert len(bodies) == told


def test_the_runbook_has_its_section():
    """What the message links to is there, with the same severity and the three parts of every section."""
    section = (ROOT / "docs/runbooks.md").read_text().partition("\n## run-failed\n")[2].partition("\n## ")[0]
    assert section.startswith("*warning.*")
    assert all(part in section for part in ("**Means.**", "**Look at.**", "**Do.**"))
