"""Airflow as a local process group: its environment, its four components, and a thin REST client.

Settings and their reasons: byte-code must be written (a task otherwise compiles its imports anew), the
supervisor's heartbeat and the scheduler's idle sleep decide the overhead per task, and the scheduler's
preloaded imports (airflow_config/airflow_local_settings.py) are what every forked task starts with.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedded import http
from pipelines import case_files
from pipelines.deploy.scheduler import FINISHED, Airflow, client
from pipelines.errors import PerennialError, Unavailable
from pipelines.installation import ROOT, search_path

if TYPE_CHECKING:
    from embedded.ports import Ports

__all__ = ["FINISHED", "Airflow", "client", "components", "environment", "healthy", "migrate"]


LINEAGE = ("OPENLINEAGE_URL", "OPENLINEAGE_API_KEY")
LINEAGE_SECONDS = 0.3
"""What an event waits for OpenLineage's backend, to connect and to answer.

One whose answer is late has arrived all the same; one that is lost is seen in the task's log, and nowhere else.
"""


def environment(home: Path, ports: Ports, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every Airflow process of the state folder ``home`` (``extra`` wins over all).

    Starts from the caller's environment without its AIRFLOW__* settings. Secrets are made once and kept
    in ``home/airflow/secrets.json``, readable by the owner only.
    """
    home = home.expanduser().resolve()
    root = home / "airflow"
    url = f"http://127.0.0.1:{ports.airflow}"
    kept = _secrets(root / "secrets.json")
    dropped = ("PYTHONDONTWRITEBYTECODE", *LINEAGE)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k not in dropped}
    bin_folder = str(Path(sys.executable).parent)
    loopback = "127.0.0.1,localhost"
    return inherited | {
        "PATH": f"{bin_folder}:{inherited.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join([*search_path(), str(Path(__file__).resolve().with_name("airflow_config"))]),
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_AIRFLOW_URL": url,
        "PERENNIAL_PRELOAD": "1",
        # Processes stand in another folder than whoever starts them.
        **({case_files.FOLDERS: os.pathsep.join(map(str, cases))} if (cases := case_files.roots()) else {}),
        "NO_PROXY": ",".join(filter(None, (inherited.get("NO_PROXY"), loopback))),
        "no_proxy": ",".join(filter(None, (inherited.get("no_proxy"), loopback))),
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AIRFLOW_HOME": str(root),
        "AIRFLOW__CORE__DAGS_FOLDER": str(_folder("dags")),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(_folder("plugins")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__FERNET_KEY": kept["fernet"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # Everybody who reaches the loopback address is an admin: no other bind is offered here.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(ports.airflow),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": kept["session"],
        "AIRFLOW__API_AUTH__JWT_SECRET": kept["jwt"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(root / "logs"),
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        **_transport(),
        **(extra or {}),
    }


def _transport() -> dict[str, str]:
    """Where OpenLineage's events go, if ``OPENLINEAGE_URL`` says it.

    By its own defaults a sink that is dead costs every task many seconds: there are two events a task, and each is
    tried six times. Here an event is sent once, from a thread (to fork a task takes longer than the event), and waited
    for :data:`LINEAGE_SECONDS`.
    """
    url, key = (os.environ.get(name, "") for name in LINEAGE)
    if not url:
        return {}
    login = {"auth": {"type": "api_key", "apiKey": key}} if key else {}
    transport = {"type": "http", "url": url, "timeout": LINEAGE_SECONDS, "retry": {"total": 0}, **login}
    return {
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",
    }


def _folder(name: str) -> Path:
    """A folder of files that Airflow reads: in a wheel it lies beside this module, in the repository at its root."""
    packaged = Path(__file__).resolve().with_name(name)
    return packaged if packaged.is_dir() else ROOT / name


def _secrets(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "jwt": secrets.token_hex(64),
            "session": secrets.token_hex(32),
            "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return _secrets(path)
        with os.fdopen(handle, "w") as file:
            json.dump(found, file)
    return found


def components() -> dict[str, list[str]]:
    """The command of each long-running process; start them all at once, each in its own session.

    The scheduler and the triggerer serve no logs: their log servers would listen on every interface, and
    the api-server reads the files beside it anyway.
    """
    airflow = [sys.executable, "-m", "airflow"]
    return {
        "api-server": [*airflow, "api-server"],
        "scheduler": [*airflow, "scheduler", "--skip-serve-logs"],
        "dag-processor": [*airflow, "dag-processor"],
        "triggerer": [*airflow, "triggerer", "--skip-serve-logs"],
    }


def migrate(env: Mapping[str, str]) -> None:
    """Create or upgrade Airflow's database; PerennialError with the last lines if that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=dict(env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise PerennialError(f"`airflow db migrate` ended with {done.returncode}: look at its last lines\n{last}")


def healthy(url: str) -> dict[str, bool]:
    """Which components answer and beat.

    Metadatabase, scheduler, dag_processor, triggerer (all False: no api-server).
    """
    names = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    try:
        answer = http.call(f"{url}/api/v2/monitor/health", timeout=3)
    except (Unavailable, ValueError):
        return dict.fromkeys(names, False)
    return {name: (answer.get(name) or {}).get("status") == "healthy" for name in names}
