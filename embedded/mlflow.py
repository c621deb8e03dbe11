"""MLflow's server on SQLite below a state folder: how a stack starts it, and one that runs alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded import http
from embedded.ports import HOST, Ports
from embedded.processes import alive, end_leaders, last_lines, launch
from pipelines.errors import Unavailable

START_SECONDS = 120.0
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "DO_NOT_TRACK": "true",
}
"""No jobs, no telemetry, no pickles."""


def command(home: Path, ports: Ports) -> list[str]:
    """The server's command.

    Its database lies in ``home``/mlflow, and so do artifacts, unless a new state has a store that MLflow can use too.
    """
    folder = home / "mlflow"
    artifacts = str(folder / "artifacts")
    lake = os.environ.get("PERENNIAL_LAKE", "")
    if lake.startswith("s3://") and not (folder / "artifacts").exists():
        artifacts = f"{lake.rstrip('/')}/mlflow"
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
        f"--artifacts-destination={artifacts}",
        f"--host={HOST}",
        f"--port={ports.mlflow}",
        "--workers=1",
    ]


def url(ports: Ports) -> str:
    """Where it answers."""
    return f"http://{HOST}:{ports.mlflow}"


def healthy(ports: Ports) -> bool:
    """Whether it answers."""
    return http.status(f"{url(ports)}/health") == 200


@contextmanager
def server(home: Path, ports: Ports) -> Iterator[str]:
    """A server for the length of a ``with`` block: its URL. For tests and benchmarks.

    Raises Unavailable with its log's last lines if it ends or does not answer in time.
    """
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    log = home / "logs" / "mlflow.log"
    process = launch("mlflow", command(home, ports), {**os.environ, **ENVIRONMENT}, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(ports):
            if not alive(process) or time.monotonic() > deadline:
                raise Unavailable(
                    f"MLflow did not answer within {START_SECONDS:g} s; the end of {log}:\n{last_lines(log)}"
                )
            time.sleep(0.2)
        yield url(ports)
    finally:
        end_leaders([process], grace=20.0)
