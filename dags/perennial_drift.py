"""The drift DAG of every case, for Airflow: perennial/airflow/drift.py."""

from perennial.airflow import dags

globals().update(dags(kinds=("drift",)))
