"""Every dag that Airflow runs for churn."""
from perennial.airflow import dags
globals().update(dags("churn"))
