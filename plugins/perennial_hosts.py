"""Airflow's guard of hosts (perennial/airflow/hosts.py), which Airflow finds here by its class."""

from perennial.airflow.hosts import PerennialHosts

__all__ = ["PerennialHosts"]
