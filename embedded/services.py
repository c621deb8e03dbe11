"""The services of one stack: what each is started with, and how it shows that it works."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from embedded import airflow, full, http, mlflow, probe, triton
from embedded.ports import HOST, Ports
from embedded.service import Service
from pipelines import hosts
from pipelines.errors import ConfigError
from pipelines.installation import CHECKOUT, install, typed
from pipelines.places import TAG
from pipelines.settings import Settings, read_settings

AIRFLOW_PARTS = {
    "api-server": "metadatabase",
    "scheduler": "scheduler",
    "dag-processor": "dag_processor",
    "triggerer": "triggerer",
}
"""Airflow's process -> its name in the health answer."""

PROFILES = ("embedded", "full")
"""embedded: SQLite and LocalExecutor, five services; full: what docker-compose.yaml starts (full.py)."""

PARAMS = "params"
"""The folder of a state that holds parameters of its own, ``<case>.yaml``."""


def settings_environment(home: Path, ports: Ports) -> dict[str, str]:
    """The ``PERENNIAL_*`` variables that lead any program to this stack."""
    return {
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_MLFLOW_URL": mlflow.url(ports),
        "PERENNIAL_AIRFLOW_URL": f"http://{HOST}:{ports.airflow}",
        "PERENNIAL_GATEWAY_URL": f"http://{HOST}:{ports.gateway}",
        "PERENNIAL_TRITON_GRPC": f"{HOST}:{ports.triton_grpc}",
        "PERENNIAL_TRITON_METRICS": f"{HOST}:{ports.triton_metrics}",
        "PERENNIAL_TRITON_CLIENT_FILE": str(home / "secrets" / "triton_client"),
        # A state that was made with parameters of its own goes on with them.
        **({"PERENNIAL_PARAMS_DIR": str(home / PARAMS)} if (home / PARAMS).is_dir() else {}),
    }


def full_environment(
    home: Path, ports: Ports, extra: Mapping[str, str] | None = None, profile: str = "embedded"
) -> dict[str, str]:
    """What every process but Triton gets: Airflow's settings, the stack's addresses and tag, no telemetry.

    ``extra`` wins.
    """
    own = {
        **settings_environment(home, ports),
        TAG: triton.stack_tag(home),
        # Airflow renames its processes, which would overwrite the environment in /proc, and with it the tag.
        "SPT_NOENV": "1",
        # A train task that tokenised on threads of its own could not fork its ranks any more.
        "TOKENIZERS_PARALLELISM": "false",
        **mlflow.ENVIRONMENT,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(
            mlflow_hosts(ports.mlflow, (extra or {}).get(hosts.VARIABLE, os.environ.get(hosts.VARIABLE, "")))
        ),
        "DVC_NO_ANALYTICS": "1",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports.worker_log),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports.trigger_log),
    }
    if profile == "full":
        return {**full.environment(airflow.environment(home, ports, own), home, ports), **(extra or {})}
    return airflow.environment(home, ports, {**own, **(extra or {})})


def mlflow_hosts(port: int, allowed: str) -> list[str]:
    """What may stand in ``Host`` for MLflow, letter by letter.

    The loopback's names and those in ``allowed``, with its port and without one. Its own defaults are patterns such as
    ``10.*``, which also fit names that anybody can have. Raises ConfigError for what is no host.
    """
    try:
        found = sorted(hosts.LOOPBACK | hosts.listed(allowed))
    except ValueError as error:
        raise ConfigError(f"{hosts.VARIABLE}: {error}") from error
    names = [f"[{name}]" if ":" in name else name for name in found]
    return [*names, *(f"{name}:{port}" for name in names)]


def settings_of(home: Path, env: Mapping[str, str]) -> Settings:
    """The settings that ``env`` gives to a program of the state ``home``.

    Raises ConfigError naming the variables that hold nothing usable.
    """
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = f"PERENNIAL_{name.upper()}"
        if file := env.get(f"{variable}_FILE"):
            try:
                found[name] = Path(file).read_text().strip()
            except OSError as error:
                raise ConfigError(
                    f"{variable}_FILE names {file}, which cannot be read ({error}): `{typed('down')}`, then "
                    f"`{typed('up')}` makes it anew"
                ) from error
        if variable in env:
            found[name] = env[variable]
    return read_settings(**{**found, "home": home})


def services(
    home: Path,
    ports: Ports,
    env: Mapping[str, str],
    *,
    traffic: bool,
    broken: list[str] | None = None,
    profile: str = "embedded",
) -> list[Service]:
    """All services of the stack, but those that the others stand on (full.foundation).

    With a list ``broken`` Triton's check is that of a start: it brings the champions back first and puts what
    cannot be brought back into the list, instead of failing; the gateway is then only asked whether it lives.
    """
    light = {name: value for name, value in env.items() if not name.startswith("AIRFLOW")}
    python = [sys.executable, "-m"]
    urls = settings_environment(home, ports)
    known = settings_of(home, env)
    found = [
        Service(
            "triton",
            triton.command(home, ports),
            triton.environment(home),
            f"grpc://{HOST}:{ports.triton_grpc}",
            lambda: (
                triton.ready(home, ports)
                and (
                    probe.champions_answer(home, ports, known)
                    if broken is None
                    else probe.restore(home, ports, broken, known)
                )
            ),
            mend=("env", "-i", f"PATH={os.defpath}", f"PERENNIAL_HOME={home}", *python, "embedded.probe"),
        ),
        Service(
            "mlflow",
            mlflow.command(home, ports),
            light,
            urls["PERENNIAL_MLFLOW_URL"],
            lambda: mlflow.healthy(ports),
        ),
        Service(
            "gateway",
            [
                *python,
                "uvicorn",
                "serving.gateway.app:app",
                f"--host={HOST}",
                f"--port={ports.gateway}",
                "--no-access-log",
                "--loop=serving.gateway.turns:Loop",
                "--http=serving.gateway.connections:Connection",
                "--ws=none",
                "--timeout-graceful-shutdown=5",
            ],
            # Threads that work on long bodies would each keep what they have freed.
            {**light, "MALLOC_ARENA_MAX": "2", "PERENNIAL_GATEWAY_GRPC": f"{HOST}:{ports.gateway_grpc}"},
            urls["PERENNIAL_GATEWAY_URL"],
            # Without any champion it has nothing to be ready for until the first promotion.
            lambda: _gateway_works(ports, serves=not broken and bool(probe.champions(home, known))),
        ),
    ]
    for name, argv in airflow.components().items():
        address = urls["PERENNIAL_AIRFLOW_URL"] if name == "api-server" else ""
        found.append(
            Service(name, argv, env, address, _airflow_check(urls["PERENNIAL_AIRFLOW_URL"], AIRFLOW_PARTS[name]))
        )
    if profile == "full":
        found = [*(full.changed(service, home, ports, env) for service in found), *full.additional(home, ports, env)]
    if traffic:
        found.append(Service("traffic", [*python, "embedded.traffic"], light, "", lambda: True))
    return found


def missing_environment() -> str:
    """What keeps the gateway and Airflow from starting, or nothing."""
    absent = [name for name in ("airflow", "mlflow", "uvicorn") if find_spec(name) is None]
    if not absent:
        return ""
    mend = f"run `{install()}`{' and use .venv/bin/python' if CHECKOUT else ''}"
    return f"{', '.join(absent)} not installed for {sys.executable}: {mend}"


def _gateway_works(ports: Ports, *, serves: bool) -> bool:
    page = "healthz"
    if serves:
        page = "readyz?every=true"
    return http.status(f"http://{HOST}:{ports.gateway}/{page}") == 200


def _airflow_check(url: str, part: str) -> Callable[[], bool]:
    return lambda: airflow.healthy(url)[part]
