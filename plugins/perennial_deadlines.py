"""Where Airflow's database may still look for deadlines of runs that were queued before there was perennial.airflow."""

from perennial.airflow.deadlines import deadline, late

__all__ = ["deadline", "late"]
