"""perennial/airflow/trigger.py with a ledger: one run of a name, whatever Airflow remembers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRuntimeError,
    AirflowSkipException,
    DagRunTriggerException,
    ErrorType,
)
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, OKResponse

from perennial.airflow.trigger import NOBODYS, TriggerOnce
from pipelines import ledger
from pipelines.errors import Unavailable

NAME = {"trigger_dag_id": "report", "trigger_run_id": "month__2026-11"}


class FakeAirflow:
    """Stands for the supervisor of a task: makes runs, one of each name, and can forget them."""

    def __init__(self):
        self.runs, self.made, self.lock, self.error = {}, [], threading.Lock(), None

    def send(self, asked):
        """Answer as the API does."""
        if self.error:
            return ErrorResponse(error=self.error)
        name = (asked.dag_id, asked.run_id)
        with self.lock:
            if name in self.runs:
                return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
            self.runs[name] = asked
            self.made.append(name)
        return OKResponse(ok=True)


@pytest.fixture
def airflow(monkeypatch):
    """What a task's supervisor answers."""
    fake = FakeAirflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", fake, raising=False)
    return fake


@pytest.fixture(params=["url", "connection", "file"])
def url(request, tmp_path, monkeypatch):
    """A ledger, by each of the ways on which a task finds it."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_CONNECTIONS", "none")
    if request.param == "connection":
        found = request.getfixturevalue("schema")
        monkeypatch.setenv("PERENNIAL_CONNECTIONS", "ledger_default")
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER_DEFAULT", found.replace("postgresql+psycopg://", "postgres://"))
        return found
    if request.param == "url":
        found = f"sqlite:///{tmp_path / 'elsewhere.db'}"
        monkeypatch.setenv("PERENNIAL_LEDGER_URL", found)
        return found
    found = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger.check(found)
    return found


def task(**arguments):
    """A task that asks for the run."""
    return TriggerOnce(task_id="go", conf={"month": 11}, **NAME, **arguments)


def context(number):
    """What a task of the run of this number is given."""
    ti = SimpleNamespace(dag_id="months", run_id=f"r{number}", task_id="go", try_number=1)
    ti.xcom_push = lambda key, value: None
    return {"ti": ti}


def ask(number=1, **arguments):
    """One try of a task: True if it made the run, False if it was skipped."""
    try:
        task(**arguments).execute(context(number))
    except AirflowSkipException:
        return False
    return True


def test_a_run_that_airflow_has_forgotten_is_not_started_again(airflow, url):
    """Asked again, cleared, or after the run was deleted: one run, noted with who asked for it."""
    assert [ask(), ask(), ask(2)] == [True, False, False]
    airflow.runs.clear()
    assert not ask(3)
    assert airflow.made == [("report", "month__2026-11")]
    assert ledger.started(url, NOBODYS, "report", "month__2026-11").asked_by == "months/r1/go#1"
    with pytest.raises(AirflowSkipException, match=r"started before: the ledger has it since .* from months/r1/go#1"):
        task().execute(context(4))


def test_twenty_who_ask_at_once_start_one_run(airflow, url):
    """One of them makes the run, the others are skipped, and one row says so."""
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(ask, range(20)))
    assert made.count(True) == 1
    assert len(airflow.made) == 1
    airflow.runs.clear()
    assert not ask(21)


def test_a_start_whose_note_was_lost_is_noted_by_the_next_try(airflow, url, monkeypatch):
    """A ledger that goes away after the run was made fails the task; the retry finds the run, notes and starts none."""

    def away(*_arguments):
        raise Unavailable("the ledger does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "note_start", away)
        with pytest.raises(Unavailable):
            ask()
    assert not ask()
    airflow.runs.clear()
    assert not ask(2)
    assert len(airflow.made) == 1


def test_nothing_is_started_while_the_ledger_is_away(airflow, monkeypatch, tmp_path):
    """A task that cannot know fails, to be tried again; with an address that nobody can use it fails at once."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_LEDGER_URL", "postgresql+psycopg://127.0.0.1:1/ledger")
    with pytest.raises(Unavailable, match="does not answer"):
        ask()
    monkeypatch.setenv("PERENNIAL_LEDGER_URL", "nonsense")
    with pytest.raises(AirflowFailException, match="PERENNIAL_LEDGER_URL"):
        ask()
    assert airflow.made == []


def test_what_airflow_refuses_is_noted_by_nobody(airflow, url):
    """A DAG that is not there fails the task, and the run can be started once it is."""
    airflow.error = ErrorType.GENERIC_ERROR
    with pytest.raises(AirflowRuntimeError):
        ask()
    airflow.error = None
    assert ask()


def test_without_a_ledger_airflow_decides(airflow, monkeypatch, tmp_path):
    """An Airflow with nothing of the loop but the provider: the request goes to Airflow, and no file is made."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "none"))
    with pytest.raises(DagRunTriggerException):
        ask()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("refused", ["wait_for_completion", "reset_dag_run"])
def test_what_would_start_or_hold_a_run_twice_is_refused(refused):
    """An argument that contradicts once is an error where the DAG is written."""
    with pytest.raises(ValueError, match=f"takes no {refused}"):
        TriggerOnce(task_id="go", conf={}, **NAME, **{refused: True})


def test_a_start_of_a_case_is_the_cases(airflow, url):
    """With a case the row belongs to its chain: another case's damage does not matter to it."""
    assert ask(case="bank")
    assert ledger.started(url, "bank", "report", "month__2026-11")
    assert ledger.started(url, NOBODYS, "report", "month__2026-11") is None
