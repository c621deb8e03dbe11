"""The connection to MLflow: no telemetry, short waits, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from pipelines.errors import IntegrityError, Unavailable
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "perennial.key"
"""Tag of runs and versions: the gate manifest's key, the identity of a judged candidate."""
DECISION = "perennial.decision"
ALIVE_SECONDS = 3.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A step that fails is tried again as a whole; waiting for minutes inside it would only hide that.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A lock file of the folder that a step happens to run in is no part of a model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def connect(settings: Settings) -> Iterator[MlflowClient]:
    """A client of the tracking server and registry at ``settings.mlflow_url``.

    Raises Unavailable within seconds if there is none or it does not answer, IntegrityError if it refuses what is
    asked.
    """
    url = settings.address("mlflow_url")
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=ALIVE_SECONDS):
            pass
    except (URLError, OSError, ValueError) as error:
        raise Unavailable(
            f"MLflow at {url} does not answer ({error}): start it, or set PERENNIAL_MLFLOW_URL to where it is"
        ) from error
    for name, value in {**_ENVIRONMENT, **_login(settings)}.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield MlflowClient(tracking_uri=url, registry_uri=url)
    except MlflowException as error:
        if error.get_http_status_code() < 500:  # the server understood and refused
            raise IntegrityError(f"MLflow at {url} refuses: {error.message}") from error
        raise Unavailable(f"MLflow at {url} failed ({error.message}): look at its log, then try again") from error
    except RequestException as error:  # an artefact's upload, which MLflow does not wrap
        raise Unavailable(f"MLflow at {url} broke off an upload ({error}): look at its log, then try again") from error


def _login(settings: Settings) -> dict[str, str]:
    """MLflow's client knows its own variables only."""
    if settings.mlflow_password is None:
        return {}
    return {
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_username,
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_password.get_secret_value(),
    }
