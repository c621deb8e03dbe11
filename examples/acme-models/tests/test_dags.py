"""Airflow reads the dags folder."""

from pathlib import Path

from airflow.dag_processing.dagbag import DagBag

DAGS = Path(__file__).parents[1] / "dags"


def test_the_case_has_its_dags() -> None:
    """Training, drift, rollout and rollback of churn are there, and no file has an import error."""
    bag = DagBag(dag_folder=str(DAGS), bundle_name="dags-folder")
    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["churn_drift", "churn_rollback", "churn_rollout", "churn_training"]
