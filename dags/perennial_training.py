"""The training DAG of every case, for Airflow: perennial/airflow/training.py."""

from perennial.airflow import dags

globals().update(dags(kinds=("training",)))
