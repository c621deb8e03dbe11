"""PROFILE=full: what docker-compose.yaml starts, as processes without Docker.

PostgreSQL and Redis below everything; Airflow with CeleryExecutor and a worker for each queue; MLflow and the gateway
(two workers) with logins; the two exporters, Prometheus and Alertmanager with compose's own configuration and rules.
Settings come from docker-compose.yaml (composed.py), secrets from keys.py, in ``<home>/secrets``.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from embedded import composed, http, keys, postgres
from embedded.ports import HOST, Ports
from embedded.processes import ROOT
from embedded.service import Service
from pipelines import ledger
from pipelines.errors import ConfigError
from pipelines.files import write_atomic
from pipelines.installation import CHECKOUT, install

PACKAGES = {
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
}
"""A program that must be on the PATH -> Debian's package that brings it."""
QUEUES = {"default": "airflow-worker", "gpu": "airflow-worker-gpu"}
"""A queue and the compose service whose worker serves it."""
DATABASES = ("airflow", "mlflow", "ledger")
MIGRATIONS = {"airflow": "airflow/migrations/versions", "mlflow": "mlflow/store/db_migrations/versions"}
"""A database that Alembic migrates, and where the installed package keeps the steps that it knows."""
LOCAL = (
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME",
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT",
    "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS",
    "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS",
    "AIRFLOW__OPENLINEAGE__TRANSPORT",
    "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD",
)
"""Airflow's settings that a machine's own processes keep from the embedded stack."""
PACKAGE_OF = {"airflow": "apache-airflow-core", "mlflow": "mlflow"}


def require() -> None:
    """Raise ConfigError naming all of Debian's packages that are missing, before anything starts.

    And where there is no docker-compose.yaml to start from.
    """
    if not CHECKOUT:
        raise ConfigError(
            "the profile full needs a checkout, with docker-compose.yaml and compose/: clone the repository and type "
            "make up PROFILE=full there; or start without --profile"
        )
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    try:
        postgres.find()
    except ConfigError:
        missing.append(postgres.PACKAGE)
    if missing:
        raise ConfigError(
            "PROFILE=full needs programs that are not installed: apt-get install --no-install-recommends "
            f"{' '.join(sorted(missing))} "
            "(their own services need not run); or start without PROFILE"
        )
    postgres.owner()


def prepare(home: Path, ports: Ports) -> None:
    """Secrets, PostgreSQL's data folder, Prometheus' configuration, the login file of Airflow.

    Changes no secret that is there.
    """
    try:
        keys.make(home / "secrets", f"{HOST}:{ports.postgres}", f"{HOST}:{ports.redis}", keys.OWNER_ONLY)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    postgres.let_in(home)
    postgres.prepare(home / "postgres", secret(home, "postgres_password"))
    for folder in ("airflow", "redis", "prometheus", "alertmanager", "mlflow/artifacts"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    metrics = home / "gateway" / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)  # another start's counters
    metrics.mkdir(parents=True)
    passwords = home / "airflow" / "passwords.json"
    write_atomic(passwords, secret(home, "airflow_passwords").encode())
    passwords.chmod(0o600)
    rules = home / "prometheus" / "rules"
    rules.mkdir(exist_ok=True)
    for source in (
        ROOT / "compose" / "prometheus" / "stack.rules.yaml",
        ROOT / "pipelines" / "alerts" / "prometheus.rules.yaml",
    ):
        shutil.copyfile(source, rules / source.name)
    scrape = (ROOT / "compose" / "prometheus" / "prometheus.yaml").read_text()
    write_atomic(home / "prometheus" / "prometheus.yaml", composed.translate(scrape, home, ports).encode())
    shutil.copyfile(ROOT / "compose" / "alertmanager" / "screen.yaml", home / "alertmanager" / "screen.yaml")


def secret(home: Path, name: str) -> str:
    """One secret of the state; ConfigError naming the file if it is not there or empty."""
    path = home / "secrets" / name
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"the secret {path} cannot be read ({error}): delete nothing in that folder while the stack runs, "
            "and start it again"
        ) from error
    if not text:
        raise ConfigError(f"the secret {path} is empty: delete the file, the next start makes it anew")
    return text


def environment(base: Mapping[str, str], home: Path, ports: Ports) -> dict[str, str]:
    """What Airflow's processes get: the caller's environment, and of compose what its workers get.

    Scripts get the admin's login.
    """
    kept = {name: value for name, value in base.items() if not name.startswith("AIRFLOW__")}
    local = {name: base[name] for name in LOCAL if name in base}
    login = {
        "PERENNIAL_AIRFLOW_USERNAME": "admin",
        "PERENNIAL_AIRFLOW_PASSWORD_FILE": str(home / "secrets" / "airflow_admin_password"),
    }
    door = {"PERENNIAL_API_KEY_FILE": str(home / "secrets" / "gateway_api_key")}
    return {**kept, **composed.environment("airflow-worker", home, ports), **local, **login, **door}


def foundation(home: Path, ports: Ports, env: Mapping[str, str]) -> list[Service]:
    """PostgreSQL and Redis: they are ready before anything else starts, and end after it."""
    light = _light(env)
    redis = [
        "redis-server",
        str(home / "secrets" / "redis_auth"),
        "--bind",
        HOST,
        "--port",
        str(ports.redis),
        "--dir",
        str(home / "redis"),
    ]
    return [
        Service(
            "postgres",
            postgres.command(home / "postgres" / "data", ports.postgres),
            {**light, "LC_ALL": "C.UTF-8"},
            f"postgresql://{HOST}:{ports.postgres}",
            lambda: postgres.ready(ports.postgres),
            stop=signal.SIGINT,  # TERM would wait for its clients
            last=True,
        ),
        Service(
            "redis",
            [*redis, "--save", "", "--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction"],
            light,
            f"redis://{HOST}:{ports.redis}",
            lambda: _redis_answers(home, ports),
            last=True,
        ),
    ]


def make_databases(home: Path, ports: Ports) -> None:
    """Airflow's, MLflow's and the ledger's database, each with an owner of its own."""
    postgres.make_databases(
        ports.postgres,
        secret(home, "postgres_password"),
        {name: secret(home, f"{name}_db_password") for name in DATABASES},
    )


def check_databases(urls: Mapping[str, str]) -> None:
    """Raise ConfigError naming the setting if a database (by name: its URL) has the schema of another version.

    An empty one is none.
    """
    ledger.check(urls["ledger"])
    for name, folder in MIGRATIONS.items():
        version = postgres.schema_version(urls[name])
        steps = _installed(folder.partition("/")[0]).parent / folder
        if version and not any(f'"{version}"' in path.read_text() for path in steps.glob("*.py")):
            raise ConfigError(
                f"the database {name} has the schema of another version: "
                f"the installed {name} {metadata.version(PACKAGE_OF[name])} does not know "
                f"its revision {version}; choose another state folder (STATE=; in compose the secret {name}_db_url), "
                "or install the version that made it"
            )


def _installed(package: str) -> Path:
    """Where a package lies; found without the seconds that importing it takes."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(f"{package} is not installed beside {sys.executable}: run `{install()}`")
    return Path(found.origin).parent


def urls(home: Path) -> dict[str, str]:
    """The address of each database, password included, by the database's name."""
    return {name: secret(home, f"{name}_db_url") for name in DATABASES}


def changed(service: Service, home: Path, ports: Ports, env: Mapping[str, str]) -> Service:
    """A service of the embedded stack as the full one starts it."""
    light = _light(env)
    if service.name == "mlflow":
        given = composed.environment("mlflow", home, ports)
        own = {
            "SECRETS": str(home / "secrets"),
            "ARTIFACTS": str(home / "mlflow" / "artifacts"),
            "HOST": HOST,
            "PORT": str(ports.mlflow),
        }
        return replace(
            service, argv=["sh", str(ROOT / "compose" / "mlflow" / "start.sh")], env={**light, **given, **own}
        )
    if service.name == "gateway":
        given = composed.environment("gateway", home, ports)
        limits = {"PERENNIAL_LIMITS_URL_FILE": str(home / "secrets" / "limits_url")}
        bounds = {name: value for name, value in env.items() if name.startswith("PERENNIAL_LOG_")}
        return replace(service, argv=[*service.argv, "--workers=2"], env={**_bare(light), **given, **bounds, **limits})
    return service


def additional(home: Path, ports: Ports, env: Mapping[str, str]) -> list[Service]:
    """A worker for each queue, the exporters, Prometheus and Alertmanager."""
    python = [sys.executable, "-m"]
    bare = _bare(_light(env))
    found = []
    for queue, name in QUEUES.items():
        command = [part for part in composed.command(name) if part != "airflow"]
        pid = home / "airflow" / f"worker-{queue}.pid"
        argv = [*python, "airflow", *command, "--celery-hostname", f"{queue}@{HOST}", "--pid", str(pid)]
        found.append(
            Service(f"worker-{queue}", argv, env, f"queue {queue}", partial(_worker_listens, home, ports, queue))
        )
    exporters = {"loop-metrics": ports.loop_metrics, "airflow-metrics": ports.airflow_metrics}
    modules = {"loop-metrics": ["pipelines", "metrics"], "airflow-metrics": ["embedded.airflow_metrics"]}
    for name, port in exporters.items():
        argv = [*python, *modules[name], "--host", HOST, "--port", str(port)]
        given = {**bare, **composed.environment(name, home, ports)}
        path = "metrics" if name == "loop-metrics" else "healthz"
        found.append(Service(name, argv, given, f"http://{HOST}:{port}/metrics", partial(_answers, port, path)))
    prometheus = [
        "prometheus",
        f"--config.file={home / 'prometheus' / 'prometheus.yaml'}",
        f"--storage.tsdb.path={home / 'prometheus' / 'data'}",
    ]
    prometheus += [f"--web.listen-address={HOST}:{ports.prometheus}", "--storage.tsdb.retention.time=30d"]
    found.append(
        Service(
            "prometheus",
            prometheus,
            bare,
            f"http://{HOST}:{ports.prometheus}",
            lambda: _answers(ports.prometheus, "-/ready"),
        )
    )
    alertmanager = [
        "prometheus-alertmanager",
        f"--config.file={home / 'alertmanager' / 'screen.yaml'}",
        f"--storage.path={home / 'alertmanager' / 'data'}",
    ]
    alertmanager += [f"--web.listen-address={HOST}:{ports.alertmanager}", "--cluster.listen-address="]
    found.append(
        Service(
            "alertmanager",
            alertmanager,
            bare,
            f"http://{HOST}:{ports.alertmanager}",
            lambda: _answers(ports.alertmanager, "-/ready"),
        )
    )
    return found


def _light(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("AIRFLOW")}


def _bare(env: Mapping[str, str]) -> dict[str, str]:
    """Without what only tasks may know: a service gets the secrets that compose gives it, and no others."""
    return {
        name: value for name, value in env.items() if not (name.startswith("PERENNIAL_") and name.endswith("_FILE"))
    }


def _answers(port: int, path: str) -> bool:
    return http.status(f"http://{HOST}:{port}/{path}") == 200


def _redis_answers(home: Path, ports: Ports) -> bool:
    import redis

    try:
        return bool(
            redis.Redis(host=HOST, port=ports.redis, password=secret(home, "redis_password"), socket_timeout=2).ping()
        )
    except redis.RedisError:
        return False


def _worker_listens(home: Path, ports: Ports, queue: str) -> bool:
    """Whether a worker is bound to the queue: its consumer is in Redis' list of clients that wait for tasks."""
    import redis

    try:
        client = redis.Redis(host=HOST, port=ports.redis, password=secret(home, "redis_password"), socket_timeout=2)
        return any(queue.encode() in member for member in client.smembers(f"_kombu.binding.{queue}"))
    except redis.RedisError:
        return False
