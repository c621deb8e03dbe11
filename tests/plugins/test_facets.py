"""perennial/airflow/facets.py: what OpenLineage's own client gets to send of a step."""

import json
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.openlineage.extractors.manager import ExtractorManager
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException
from airflow.utils.state import TaskInstanceState
from openlineage.client.serde import Serde

from perennial.airflow import facets
from perennial.airflow.lineage import to_openlineage
from perennial.airflow.links import Ended
from perennial.airflow.operators import StepOperator
from pipelines import objects, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest
from pipelines.errors import DataError
from pipelines.line import runner
from pipelines.line.order import BY_NAME
from pipelines.settings import Settings
from tests import stores

AS_OF = datetime(2009, 5, 1, tzinfo=UTC)
FACTS = {
    "ingest": {"rows": 7},
    "dataset": {"train_rows": 5, "holdout_rows": 2},
    "gate": {"decision": "promote", "rule": "better", "reason": "it is", "verdict_sha256": "v" * 64},
    "register": {"version": 4, "mlflow_run": "r"},
    "rollout": {"outcome": "promoted", "version": 4, "seq": 2},
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder of its own."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def task(monkeypatch, home):
    """Runs a task whose step answers with these facts: the task."""

    def run(name, facts, *, fails=False):
        made = Manifest(
            step=name, case="bank", as_of=AS_OF, key=f"k{name}", inputs={}, files={}, facts=facts, provenance={}
        ).model_copy(update={"sha256": f"sha-{name}"})

        def step(_step, asked):
            if fails:
                raise DataError("6% bad rows")
            (asked.dir / name).mkdir(parents=True, exist_ok=True)
            (asked.dir / name / "manifest.json").write_text(made.model_dump_json())
            return made

        monkeypatch.setattr(runner, "run", step)
        dag_run = SimpleNamespace(
            data_interval_end=None, logical_date=None, run_after=AS_OF, run_type="manual", triggering_user_name=None
        )
        dag_run.dag_id, dag_run.run_id = "bank_training", "manual__1"
        operator = StepOperator(task_id=name, step=name, case="bank")
        ti = SimpleNamespace(xcom_push=lambda **_: None)
        with pytest.raises(AirflowFailException) if fails else nullcontext():
            operator.execute({"params": {"as_of": "2009-05-01"}, "dag_run": dag_run, "ti": ti})
        return operator

    return run


def _sent(operator, state):
    """What Airflow's provider makes of a task in this state, as it is sent."""
    operator.dag = None
    task_instance = SimpleNamespace(task=operator)
    shown = SimpleNamespace(
        task_type=operator.task_type, dag_id="bank_training", task_id=operator.task_id, inlets=[], outlets=[]
    )
    for method in ("get_openlineage_facets_on_start", "get_openlineage_facets_on_complete"):
        setattr(shown, method, getattr(operator, method))
    found = ExtractorManager().extract_metadata(SimpleNamespace(run_id="r"), shown, state, task_instance)
    sides = {side: [json.loads(Serde.to_json(one)) for one in getattr(found, side)] for side in ("inputs", "outputs")}
    return {**sides, "told": json.loads(Serde.to_json(found.run_facets["perennial"]))}


def _places(datasets):
    return [(one["namespace"], one["name"], one["facets"].get("version", {}).get("datasetVersion")) for one in datasets]


def test_data_dataset_model_and_release_are_one_chain(task):
    """What a step makes and the next one uses has one name and one version.

    A data set's is its manifest's hash, a model's its number in MLflow, a release's its number in the ledger.
    """
    sent = {name: _sent(task(name, facts), TaskInstanceState.SUCCESS) for name, facts in FACTS.items()}
    bank = "perennial://bank"
    assert {name: (_places(one["inputs"]), _places(one["outputs"])) for name, one in sent.items()} == {
        "ingest": ([], [(bank, "data", "sha-ingest")]),
        "dataset": ([(bank, "data", "sha-ingest")], [(bank, "dataset", "sha-dataset")]),
        "gate": ([], []),
        "register": ([(bank, "dataset", "sha-dataset")], [(bank, "model", "4")]),
        "rollout": ([(bank, "model", "4")], [(bank, "release", "2")]),
    }
    made = sent["dataset"]["outputs"][0]
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 7
    columns = [(column["name"], column["type"]) for column in made["facets"]["schema"]["fields"]]
    assert columns == [(field.name, type(field).__name__) for field in load_fields("bank").fields]


def test_every_step_says_what_it_found(task):
    """The run facet has the case, the clock, the key, the manifest's hash and the small facts: the verdict, too."""
    told = _sent(task("gate", FACTS["gate"]), TaskInstanceState.SUCCESS)["told"]
    assert (told["case"], told["step"], told["asOf"]) == ("bank", "gate", "2009-05-01T00:00:00+00:00")
    assert (told["key"], told["manifestSha256"], told["facts"]) == ("kgate", "sha-gate", FACTS["gate"])


def test_what_was_not_made_is_not_told(task):
    """A task that begins, fails, or does not promote names what it uses and makes nothing."""
    task("register", FACTS["register"])
    kept = _sent(task("rollout", {"outcome": "kept", "version": 4, "seq": None}), TaskInstanceState.SUCCESS)
    failed = _sent(task("rollout", {}, fails=True), TaskInstanceState.FAILED)
    begun = _sent(StepOperator(task_id="rollout", step="rollout", case="bank"), TaskInstanceState.RUNNING)
    for sent, version in ((kept, "4"), (failed, "4"), (begun, None)):
        assert (_places(sent["inputs"]), sent["outputs"]) == ([("perennial://bank", "model", version)], [])
    assert "key" not in failed["told"]


def test_an_inlet_of_anybody_s_task_is_the_same_dataset():
    """An asset of a case, as another DAG names it, joins the graph."""
    found = to_openlineage(Asset("bank release", uri="perennial://bank/release"), None)
    assert (found.namespace, found.name) == ("perennial://bank", "release")


def test_a_rollback_makes_a_release(home):
    """A person's word that changed what serves is told with the release's number."""
    answer = {"changed": True, "serves": 3, "release": {"seq": 9}}
    ended = Ended(Settings(home=home), "bank", AS_OF, None, answer)
    [made] = facets.over(BY_NAME["rollback"], ended).outputs
    assert (made.name, made.facets["version"].datasetVersion) == ("release", "9")
    unchanged = Ended(Settings(home=home), "bank", AS_OF, None, {"changed": False, "release": {"seq": 9}})
    assert facets.over(BY_NAME["rollback"], unchanged).outputs == []


def test_what_another_machine_made_has_its_version_too(tmp_path):
    """Behind a store the data that this machine has not opened has the version that another machine gave it."""
    with stores.s3():
        one, other = (Settings(home=tmp_path / name, lake=f"s3://{stores.BUCKET}/facets") for name in ("one", "other"))
        for settings in (one, other):
            objects.attach(settings)
        folder = one.run_dir("bank", AS_OF) / "ingest"
        made = storage.commit(folder, case="bank", as_of=AS_OF, key="k", inputs={}, build=lambda _work: {"rows": 7})
        [used] = facets.over(BY_NAME["dataset"], Ended(other, "bank", AS_OF, None, {})).inputs
        assert used.facets["version"].datasetVersion == made.sha256
    objects._attached.clear()
