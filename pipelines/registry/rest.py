"""MLflow's REST interface without its package, whose import costs a second and a half and five threads.

The train step is where that counts: a process with threads may not fork its ranks.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from pipelines.errors import IntegrityError, Unavailable
from pipelines.settings import Settings

TIMEOUT_SECONDS = 5.0
ABSENT = "RESOURCE_DOES_NOT_EXIST"
PRESENT = "RESOURCE_ALREADY_EXISTS"


class Refused(IntegrityError):
    """MLflow understood and refused; ``code`` is its error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def get(settings: Settings, path: str, **query: str) -> dict[str, Any]:
    """``GET /api/2.0/mlflow/<path>``; raises as :func:`post` does."""
    return _call(settings, f"{path}?{urlencode(query)}", None)


def post(settings: Settings, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``POST /api/2.0/mlflow/<path>``.

    Raises Unavailable within seconds if there is no MLflow or it does not answer, Refused if it refuses.
    """
    return _call(settings, path, json.dumps(payload).encode())


def _call(settings: Settings, path: str, body: bytes | None) -> dict[str, Any]:
    url = settings.address("mlflow_url")
    try:
        headers = {"Content-Type": "application/json", **_authorisation(settings)}
        request = Request(f"{url}/api/2.0/mlflow/{path}", data=body, headers=headers)  # noqa: S310 - our own setting
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
    except HTTPError as error:
        said = error.read().decode(errors="replace")
        if error.code < 500:
            raise Refused(f"MLflow at {url} refuses {path.partition('?')[0]}: {said[:500]}", _code(said)) from error
        raise Unavailable(
            f"MLflow at {url} failed ({error.code}: {said[:200]}): look at its log, then try again"
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise Unavailable(
            f"MLflow at {url} does not answer ({error}): start it, or set PERENNIAL_MLFLOW_URL to where it is"
        ) from error
    return found


def _code(said: str) -> str:
    try:
        return str(json.loads(said).get("error_code", ""))
    except (ValueError, AttributeError):
        return ""


def _authorisation(settings: Settings) -> dict[str, str]:
    """For a server behind a login: our own settings, else MLflow's own variables."""
    if settings.mlflow_password is not None:
        return _basic(settings.mlflow_username, settings.mlflow_password.get_secret_value())
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return _basic(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    return {}


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
