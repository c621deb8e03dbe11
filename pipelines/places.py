"""Where the services of a state folder are: what its own stack wrote down when it was started.

``<home>/stack.json`` names the stack's processes, ``<home>/env`` the variables that lead a program to it. An address
counts only while the very process that was started for it lives: whatever else listens there belongs to somebody else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from pipelines.processes import birth

HOME = Path("runs/local")
"""The state folder unless ``PERENNIAL_HOME`` names another."""
RECORD, ENV = "stack.json", "env"
TAG = "PERENNIAL_STACK"
"""Every process of a stack has it in its environment, and with it everything else that it needs."""


class Service(NamedTuple):
    """A service of the stack, by its process: the settings that are its addresses, and those that go with them."""

    process: str
    title: str
    addresses: tuple[str, ...]
    beside: tuple[str, ...] = ()


SERVICES = (
    Service("mlflow", "MLflow", ("mlflow_url",), ("mlflow_public_url", "mlflow_username", "mlflow_password")),
    Service("api-server", "Airflow", ("airflow_url",), ("airflow_username", "airflow_password")),
    Service("gateway", "gateway", ("gateway_url",)),
    Service("triton", "Triton", ("triton_grpc", "triton_metrics"), ("triton_client",)),
)
PRIVATE = 0o077
"""The umask of everything that writes a state folder."""
KEPT = ("lake", "ledger_url", "api_key_file", "data_dir", "params_dir", "alert_webhook", "alert_mail")
"""Settings that belong to the state itself: they hold whether its stack runs or not."""


def title(setting: str) -> str:
    """What people call the service that a setting is an address of."""
    return next(service.title for service in SERVICES if setting in service.addresses)


def variables(home: Path) -> dict[str, str]:
    """The ``PERENNIAL_*`` variables of the stack that was started last on ``home``.

    None if there was none, and for its own processes.
    """
    if TAG in os.environ:
        return {}
    try:
        lines = (home / ENV).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value}


def keep_closed(home: Path) -> None:
    """What this process writes is its owner's alone, unless others may enter the state folder ``home``.

    The volumes of containers are such folders.
    """
    try:
        closed = not home.stat().st_mode & 0o007
    except OSError:
        closed = True  # it is made by this process
    if closed:
        os.umask(PRIVATE)


def running(home: Path) -> set[str]:
    """The names of the stack's processes that live; a record that cannot be read names none."""
    try:
        found = json.loads((home / RECORD).read_text())["processes"]
        return {process["name"] for process in found if birth(int(process["pid"])) == process["birth"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
