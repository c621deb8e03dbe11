"""A real MLflow with a fresh state folder beside it."""

import pytest

from pipelines.settings import Settings


@pytest.fixture
def settings(tmp_path, mlflow_url):
    """A fresh state folder beside the real MLflow."""
    return Settings(home=tmp_path, mlflow_url=mlflow_url)


@pytest.fixture
def client(mlflow_url):
    """MLflow's own client."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_url, mlflow_url)
