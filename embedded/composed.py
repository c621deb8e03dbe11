"""docker-compose.yaml as the one source of the full stack's settings.

What a service gets there, said for processes on this machine. A variable of the file is taken over as it stands, with
the places changed: a service's name and port become 127.0.0.1 and our port, a container's folder becomes one of the
state folder's. What has to differ is named in ``DIFFERS``, with the reason; nothing else may
(tests/embedded/test_composed.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from embedded.ports import HOST, Ports
from embedded.processes import ROOT
from pipelines.errors import ConfigError

FILE = ROOT / "docker-compose.yaml"
SERVICES = {
    "postgres:5432": "postgres",
    "redis:6379": "redis",
    "mlflow:5000": "mlflow",
    "airflow-apiserver:8080": "airflow",
    "gateway:8090": "gateway",
    "0.0.0.0:8091": "gateway_grpc",
    "triton:8001": "triton_grpc",
    "triton:8002": "triton_metrics",
    "loop-metrics:9109": "loop_metrics",
    "airflow-metrics:9112": "airflow_metrics",
    "127.0.0.1:9090": "prometheus",
    "alertmanager:9093": "alertmanager",
    "127.0.0.1:8080": "airflow",
    "127.0.0.1:5000": "mlflow",
    "localhost:5000": "mlflow",
}
"""An address in the file -> the name of our port."""
CHOSEN = {"AIRFLOW_EXECUTOR": "CeleryExecutor"}
"""What `docker compose` would read from .env."""
DIFFERS = {
    "AIRFLOW__API__HOST": (HOST, "a container listens inside its network, a process on the loopback address"),
    "AIRFLOW__API__PORT": ("{airflow}", "our own port"),
    "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": (
        "False",
        "it would listen on every interface; the REST API says the same",
    ),
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": (None, "see the line above"),
    "PERENNIAL_DATA_DIR": (None, "the checkout's own data folder"),
    "PERENNIAL_ALLOWED_HOSTS": (None, "the caller's own variable is handed down"),
    "PERENNIAL_CASES": (None, "the caller's own folders are handed down"),
    "MLFLOW_SERVER_ALLOWED_HOSTS": (None, "our own port, and the names of the caller's variable"),
    "PERENNIAL_GRAFANA_URL": (None, "there is no Grafana among the processes"),
    "XDG_CACHE_HOME": (None, "the caller's own caches"),
    "MPLCONFIGDIR": (None, "the caller's own caches"),
    "DUMB_INIT_SETSID": (None, "there is no init in between"),
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": (
        "{home}/airflow/passwords.json",
        "a copy of the secret that it may lock for writing",
    ),
    "PROMETHEUS_MULTIPROC_DIR": ("{home}/gateway/metrics", "a state folder's own"),
}
"""Variable -> (its value here, None: left out; why it cannot be the file's)."""


@cache
def _file() -> dict[str, Any]:
    try:
        found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{FILE} cannot be read ({error}): PROFILE=full takes its settings from there; restore it from git"
        ) from error
    return found


def environment(service: str, home: Path, ports: Ports) -> dict[str, str]:
    """What the file gives ``service``, for processes of the state folder ``home``.

    ConfigError if it has no such service.
    """
    try:
        given = _file()["services"][service]["environment"]
    except KeyError as error:
        raise ConfigError(f"{FILE} has no environment of a service {service!r}: restore it from git") from error
    found = {}
    for name, value in given.items():
        here = translate(str(value), home, ports)
        if name in DIFFERS:
            own, _ = DIFFERS[name]
            here = (own or "").format(home=home, airflow=ports.airflow)
        if here:
            found[name] = here
    return found


def command(service: str) -> list[str]:
    """The file's command of ``service``, as it stands."""
    return [str(part) for part in _file()["services"][service]["command"]]


def translate(text: str, home: Path, ports: Ports) -> str:
    """A text of the compose files with the places of this machine.

    Addresses, secrets, folders, variables with their defaults.
    """
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: CHOSEN.get(found[1], found[2]), text)
    addresses = "|".join(re.escape(address) for address in SERVICES)
    text = re.sub(
        rf"(?<![\w.-])({addresses})(?!\d)", lambda found: f"{HOST}:{getattr(ports, SERVICES[found[1]])}", text
    )
    for container, here in _folders(home).items():
        text = re.sub(rf"(?<![\w/]){re.escape(container)}(?=[/\s\"]|$)", here, text)
    return text


def _folders(home: Path) -> Mapping[str, str]:
    return {
        "/run/secrets": str(home / "secrets"),
        "/opt/perennial/src": str(ROOT),
        "/opt/airflow": str(home / "airflow"),
        "/var/log/perennial": str(home / "airflow" / "logs"),
        "/srv/perennial": str(home),
        "/srv/mlflow/artifacts": str(home / "mlflow" / "artifacts"),
    }
