"""The rollout DAG of every case, for Airflow: perennial/airflow/rollout.py."""

from perennial.airflow import dags

globals().update(dags(kinds=("rollout",)))
