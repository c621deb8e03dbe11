"""The rollback DAG of every case, for Airflow: perennial/airflow/rollback.py."""

from perennial.airflow import dags

globals().update(dags(kinds=("rollback",)))
