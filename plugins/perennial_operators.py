"""The operators under the names that DAGs of people may import; new ones import them from perennial.airflow."""

from perennial.airflow import StepOperator, TriggerOnce

__all__ = ["StepOperator", "TriggerOnce"]
