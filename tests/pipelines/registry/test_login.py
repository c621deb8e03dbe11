"""The login at MLflow: from our settings, for the REST calls and for MLflow's own client."""

import base64

import pytest

from pipelines.registry import client, rest
from pipelines.settings import Settings

BASIC = "Basic " + base64.b64encode(b"perennial:geheim").decode()


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No login in the environment."""
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def test_our_settings_come_first(monkeypatch):
    """A password in the settings is sent as basic authentication and comes before MLflow's own variables."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "other")
    settings = Settings(mlflow_username="perennial", mlflow_password="geheim")
    assert rest._authorisation(settings) == {"Authorization": BASIC}
    assert rest._authorisation(Settings()) == {"Authorization": "Bearer other"}


def test_mlflows_client_is_told():
    """MLflow's own client gets the same login in its own variables, and nothing where there is none."""
    login = client._login(Settings(mlflow_username="perennial", mlflow_password="geheim"))
    assert login == {"MLFLOW_TRACKING_USERNAME": "perennial", "MLFLOW_TRACKING_PASSWORD": "geheim"}
    assert client._login(Settings()) == {}
    assert rest._authorisation(Settings()) == {}
