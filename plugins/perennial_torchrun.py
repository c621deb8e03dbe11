"""The training's operator under the name that DAGs of people may import; new ones import it from perennial.airflow."""

from perennial.airflow import TorchrunOperator

__all__ = ["TorchrunOperator"]
