"""Tests of the two operators, without a scheduler."""

import json
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DagRunTriggerException

from perennial.airflow.links import BUTTONS, DASHBOARD, Link
from perennial.airflow.operators import StepOperator
from perennial.airflow.trigger import TriggerOnce
from pipelines import ledger
from pipelines.contracts import Manifest, Order
from pipelines.errors import DataError, TrainingDiverged, Unavailable
from pipelines.line import runner
from pipelines.line.order import ALL, BY_NAME
from pipelines.settings import Settings

ROOT = Path(__file__).parents[2]
AS_OF = datetime(2009, 5, 1, tzinfo=UTC)


class Pushed(dict):
    """Stands for a task instance: keeps what was pushed."""

    def xcom_push(self, key, value):
        """Keep it."""
        self[key] = value


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder of its own, and the name of who acts."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_ACTOR", "ada")
    return tmp_path


@pytest.fixture
def step(monkeypatch):
    """Puts the given function in the place of a step, or of the ``run`` of an action."""

    def put(name, run):
        monkeypatch.setattr(runner, "run", lambda _step, asked: run(asked))
        module = ModuleType(f"pipelines.steps.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, f"pipelines.steps.{name}", module)

    return put


def _context(ti=None, run_type="manual", **params):
    run = SimpleNamespace(
        data_interval_end=None, logical_date=None, run_after=AS_OF, run_type=run_type, triggering_user_name=None
    )
    run.dag_id = "bank_drift"
    run.run_id = "manual__1"
    return {"params": {"as_of": "2009-05-01", **params}, "dag_run": run, "ti": Pushed() if ti is None else ti}


def _making(manifest):
    return lambda run: manifest


def _buttons(task):
    """The buttons that Airflow shows: those with an address."""
    found = {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links}
    return {name: address for name, address in found.items() if address}


def _manifest(name, **facts):
    return Manifest(step=name, case="bank", as_of=AS_OF, key="k", inputs={}, files={}, facts=facts, provenance={})


def _execute(name, context):
    return StepOperator(task_id=name, step=BY_NAME[name], case="bank").execute(context)


def test_a_step_gets_its_run(step, home):
    """Case, places, folder and clock reach the step, and the XCom is its manifest's path and small facts."""
    seen = {}

    def run(asked):
        seen.update(case=asked.case, root=asked.settings.root, run_dir=asked.dir, as_of=asked.as_of)
        return _manifest("ingest", rows=7, partitions=[1, 2, 3])

    step("ingest", run)
    answer = _execute("ingest", _context())
    assert seen == {"case": "bank", "root": home, "run_dir": home / "artefacts/bank/20090501T000000Z", "as_of": AS_OF}
    assert answer == {
        "rows": 7,
        "as_of": "2009-05-01T00:00:00+00:00",
        "manifest": "artefacts/bank/20090501T000000Z/ingest/manifest.json",
    }


def test_the_trigger_is_initial_until_there_is_a_champion(step):
    """A step that takes a trigger learns it: initial before the first release, the run's own reason afterwards."""
    seen = []

    def run(asked):
        seen.append(asked.trigger)
        return _manifest("gate")

    step("gate", run)
    _execute("gate", _context(trigger="drift"))
    common = {
        "case": "bank",
        "after": 0,
        "champion": 1,
        "candidate_key": "k",
        "bundle": "b",
        "action": "promote",
    }
    ledger.append(
        Settings().ledger,
        Order(**common, trigger="initial", reason="first", actor="ada", as_of=datetime(2008, 8, 1, tzinfo=UTC)),
    )
    _execute("gate", _context(trigger="drift"))
    _execute("gate", _context(run_type="scheduled"))
    assert seen == ["initial", "drift", "schedule"]


def test_a_rollback_gets_reason_and_actor(step):
    """The reason of the trigger form and whoever acts reach the rollback; its small answer is the XCom."""
    step("rollback", lambda params, settings, reason, actor, as_of: {"said": f"{actor}: {reason}", "long": [1]})
    assert _execute("rollback", _context(reason="complaints")) == {"said": "ada: complaints"}


def test_a_drift_step_asks_for_training_or_for_nothing(step):
    """With action retrain the conf of the training run is pushed; otherwise an empty one, which TriggerOnce skips."""
    for action, episode in (("retrain", "bank-1"), ("none", None)):
        ti = Pushed()
        step("drift", _judging(action, episode))
        _execute("drift", _context(ti))
        if action == "none":
            assert ti == {"retrain": {}}
        else:
            report = "artefacts/bank/20090501T000000Z/drift/report.json"
            assert ti == {
                "retrain": {
                    "as_of": AS_OF.isoformat(),
                    "trigger": "performance",
                    "episode": "bank-1",
                    "evidence": report,
                }
            }


def _judging(action, episode):
    def run(_asked):
        about = {"state": "CONFIRMED", "action": action, "episode": episode}
        return _manifest("drift", **about, trigger="performance", reason="psi")

    return run


@pytest.mark.parametrize(
    ("error", "expected"),
    [(DataError("6% bad rows"), AirflowFailException), (Unavailable("Triton is down"), Unavailable)],
)
def test_a_step_that_fails_says_whether_to_try_again(step, error, expected):
    """An error of the data ends the task at once, a service that is down is tried again; both keep their message."""

    def run(params, settings):
        raise error

    step("reconcile", run)
    with pytest.raises(expected, match=str(error)):
        _execute("reconcile", _context())


def test_the_register_task_links_to_its_model_version(step, monkeypatch):
    """The button of the register task leads to the version that it registered."""
    monkeypatch.setenv("PERENNIAL_MLFLOW_URL", "http://127.0.0.1:5999")
    step("register", lambda _: _manifest("register", version=4))
    task = StepOperator(task_id="register", step=BY_NAME["register"], case="bank")
    task.execute(_context())
    assert _buttons(task) == {"Model version": "http://127.0.0.1:5999/#/models/bank/versions/4"}


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_train_task_links_to_its_run(step, monkeypatch, home, ends_well):
    """The button of the train task leads to its MLflow run, also when the training failed."""
    monkeypatch.setenv("PERENNIAL_MLFLOW_URL", "http://127.0.0.1:5999")

    def run(asked):
        folder = asked.dir / "train" if ends_well else asked.dir / ".train.k1"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"facts": {"mlflow_page": "#/experiments/1/runs/r"}}))
        (folder / "mlflow.page").write_text("#/experiments/1/runs/r")
        if not ends_well:
            raise TrainingDiverged("the loss is nan at step 3")
        return _manifest("train")

    step("train", run)
    task = StepOperator(task_id="train", step=BY_NAME["train"], case="bank")
    with nullcontext() if ends_well else pytest.raises(AirflowFailException):
        task.execute(_context())
    assert _buttons(task) == {"MLflow run": "http://127.0.0.1:5999/#/experiments/1/runs/r"}


def test_buttons_lead_to_where_people_are(step, monkeypatch, home):
    """The gate's report, the drift run's pages and Grafana's dashboard of the case open at addresses for browsers.

    Without a Grafana there is no button.
    """
    monkeypatch.setenv("PERENNIAL_MLFLOW_URL", "http://mlflow:5000")
    monkeypatch.setenv("PERENNIAL_MLFLOW_PUBLIC_URL", "https://mlflow.example.org")
    folder = home / "artefacts/bank/20090501T000000Z/train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"facts": {"mlflow_page": "#/experiments/1/runs/r"}}))
    facts = {
        "gate": {},
        "rollout": {"outcome": "kept", "version": 1, "seq": None},
        "drift": {"state": "STABLE", "action": "none", "reason": "quiet", "trigger": "drift", "episode": None},
        "report": {"page": "http://mlflow:5000/#/experiments/2/runs/w/artifacts/daily.html"},
    }
    shown = {}
    for name, found in facts.items():
        step(name, _making(_manifest(name, **found)))
        for grafana in ("", "http://127.0.0.1:3000/"):
            monkeypatch.setenv("PERENNIAL_GRAFANA_URL", grafana)
            task = StepOperator(task_id=name, step=BY_NAME[name], case="bank")
            task.execute(_context())
            shown[name, bool(grafana)] = _buttons(task)
    grafana = {"Grafana": "http://127.0.0.1:3000/d/perennial-model?var-case=bank"}
    assert shown["gate", True] == {
        "Gate report": "https://mlflow.example.org/#/experiments/1/runs/r/artifacts/verdict.json"
    }
    assert (shown["rollout", False], shown["rollout", True]) == ({}, grafana)
    assert shown["drift", False].keys() == {"Drift report"}
    assert shown["drift", True] == {**shown["drift", False], **grafana}
    assert shown["drift", True]["Drift report"].endswith("/dags/bank_drift/runs/manual__1/tasks/report")
    assert shown["report", True] == {
        "Daily page": "https://mlflow.example.org/#/experiments/2/runs/w/artifacts/daily.html"
    }


def test_every_button_has_a_place_of_its_own():
    """Airflow keeps a button's address under a key.

    Two buttons of one task do not share one, and the dashboard is one that exists.
    """
    for step in ALL:
        assert len({Link(name).xcom_key for name in step.buttons}) == len(step.buttons)
        assert set(step.buttons) <= set(BUTTONS)
    assert DASHBOARD in {
        json.loads(path.read_text())["uid"] for path in (ROOT / "compose/grafana/dashboards").glob("*.json")
    }


def test_a_trigger_asks_once_by_name():
    """The run's name is given, there is no logical date, an existing run is a skip.

    The link is pushed before asking.
    """
    ti = Pushed()
    task = TriggerOnce(
        task_id="retrain",
        trigger_dag_id="bank_training",
        trigger_run_id="drift__e1",
        conf={"episode": "e1"},
        note="psi",
    )
    with pytest.raises(DagRunTriggerException) as asked:
        task.execute({"ti": ti})
    assert ti["trigger_run_id"] == "drift__e1"
    assert _buttons(task)["Triggered DAG"].endswith("/dags/bank_training/runs/drift__e1")
    wanted = asked.value
    assert (wanted.dag_run_id, wanted.logical_date, wanted.skip_when_already_exists, wanted.conf) == (
        "drift__e1",
        None,
        True,
        {"episode": "e1"},
    )
    assert (wanted.note, wanted.wait_for_completion) == ("psi", False)
    assert "note" in TriggerOnce.template_fields


@pytest.mark.parametrize("conf", [None, {}])
def test_nothing_to_trigger_is_a_skip(conf):
    """Without a conf the task is skipped and pushes nothing."""
    ti = Pushed()
    task = TriggerOnce(task_id="retrain", trigger_dag_id="bank_training", trigger_run_id="drift__None", conf=conf)
    with pytest.raises(AirflowSkipException):
        task.execute({"ti": ti})
    assert ti == {}
    assert _buttons(task) == {}


def test_a_note_is_a_template_and_a_conf_stays_what_it_is():
    """The note is filled in, and the conf arrives as the mapping that the drift step pushed, not as its text."""
    asked = {"episode": "e1", "as_of": AS_OF.isoformat()}
    with DAG("d", schedule=None):
        judge = StepOperator(task_id="drift", step=BY_NAME["drift"], case="bank")
        task = TriggerOnce(
            task_id="retrain",
            trigger_dag_id="bank_training",
            trigger_run_id="drift__{{ name }}",
            conf=judge.output["retrain"],
            note="{{ why }}",
        )
    ti = SimpleNamespace(xcom_pull=lambda **_: asked)
    task.render_template_fields({"ti": ti, "name": "e1", "why": "psi"})
    assert (task.trigger_run_id, task.note, task.conf) == ("drift__e1", "psi", asked)


def test_parts_of_a_step_can_be_mapped(step):
    """Another function of a step is called with its day.

    A list of parts is pushed as it is, a part's facts without a manifest's path.
    """
    step("profile", None)
    module = sys.modules["pipelines.steps.profile"]
    module.days = lambda run: [str(run.as_of.date())]
    module.part = lambda run, day: _manifest(day, day=day, rows=3, hours=[1, 2])
    days = StepOperator(task_id="days", step=BY_NAME["profile"], part="days", case="bank")
    assert days.execute(_context()) == ["2009-05-01"]
    part = StepOperator(task_id="part", step=BY_NAME["profile"], part="part", case="bank", day="2009-05-01")
    assert part.execute(_context()) == {"day": "2009-05-01", "rows": 3}


def test_a_task_of_a_retired_case_is_skipped_but_for_what_puts_serving_in_order(step, home):
    """A retired case whose DAG was triggered all the same does nothing; its reconcile unloads what is left."""
    ledger.set_retired(Settings(home=home).ledger, "bank", retired=True, reason="old", actor="ada")
    step("ingest", _making(_manifest("ingest")))
    with pytest.raises(AirflowSkipException, match="bank is retired since"):
        _execute("ingest", _context())
    step("reconcile", lambda _params, _settings: {"case": "bank", "champion": None})
    assert _execute("reconcile", _context())["champion"] is None
    ledger.set_retired(Settings(home=home).ledger, "bank", retired=False, reason="new", actor="ada")
    step("ingest", _making(_manifest("ingest")))
    assert _execute("ingest", _context())["as_of"] == "2009-05-01T00:00:00+00:00"
