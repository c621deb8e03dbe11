"""The settings in docker-compose.yaml: ours and Airflow's are known, point at services, and are those of `make up`."""

import re
import shutil
import subprocess

import pytest

from embedded.keys import AIRFLOW_USERS, MLFLOW_USER
from embedded.ports import Ports
from pipelines import case_files
from pipelines.settings import Settings
from serving.gateway.settings import Bounds
from tests.compose.stackfile import ROOT, environment, load, services

AIRFLOW = [name for name, service in services().items() if "AIRFLOW__CORE__EXECUTOR" in service.get("environment", {})]
every_service = pytest.mark.parametrize("name", services())


@every_service
def test_our_settings_are_known(name):
    """Every PERENNIAL_* variable is a field of Settings or of the gateway's bounds, or a file that holds one.

    A typo would be ignored silently.
    """
    fields = {f"PERENNIAL_{field.upper()}" for field in Settings.model_fields}
    fields |= (
        {case_files.FOLDERS}
        | {f"{field}_FILE" for field in fields}
        | {f"PERENNIAL_GATEWAY_{field.upper()}" for field in Bounds.model_fields}
        | {"PERENNIAL_PRELOAD"}
    )
    assert {setting for setting in environment(name) if setting.startswith("PERENNIAL_")} <= fields


def test_our_settings_point_at_services():
    """Every address in our settings is a service's name and a port that it listens on.

    Both are on one network.
    """
    ports = {"mlflow": {5000}, "airflow-apiserver": {8080}, "gateway": {8090}, "triton": {8001, 8002}}
    for name in services():
        for setting, value in environment(name).items():
            if setting.startswith("PERENNIAL_") and (found := re.fullmatch(r"(?:http://)?([a-z-]+):(\d+)", value)):
                assert int(found[2]) in ports[found[1]], (name, setting)
    for client, server in [
        ("airflow-scheduler", "triton"),
        ("airflow-worker", "triton"),
        ("gateway", "triton"),
        ("airflow-scheduler", "mlflow"),
    ]:
        assert set(services()[client]["networks"]) & set(services()[server]["networks"])


def test_airflows_settings_are_known():
    """Every AIRFLOW__* variable names an option of `airflow config list`.

    One from a command is an option that may come from one.
    """
    from airflow.configuration import conf

    sensitive = conf.sensitive_config_values
    for setting in {setting for name in AIRFLOW for setting in environment(name) if setting.startswith("AIRFLOW__")}:
        section, option = setting.removeprefix("AIRFLOW__").lower().split("__")
        option = option.removesuffix("_cmd")
        assert option in conf.configuration_description[section]["options"], setting
        assert not setting.endswith("_CMD") or (section, option) in sensitive, setting


DIFFERENT = {
    "AIRFLOW__API__HOST": "a container listens on its own address; what is published is on 127.0.0.1",
    "AIRFLOW__CORE__DAGS_FOLDER": "a path in the image",
    "AIRFLOW__CORE__PLUGINS_FOLDER": "a path in the image",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "a service's name",
    "AIRFLOW__CORE__FERNET_KEY": "from a file",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "only where nobody else reaches the address",
    "AIRFLOW__API__SECRET_KEY": "from a file",
    "AIRFLOW__API_AUTH__JWT_SECRET": "from a file",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "from a file",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "a volume",
    "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "a volume's files are read by other users' services",
    "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "the same",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "costs a fifth of a core when idle: for demos only",
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": "no log servers: api-server and tasks share a volume",
    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": "the same",
}
"""Airflow's settings in which compose differs from `make up`, and why."""


def test_airflow_is_set_as_in_make_up(tmp_path):
    """Both stacks give Airflow the same settings, but for those whose reason stands in DIFFERENT.

    All-admins is off here.
    """
    from embedded.services import full_environment

    here = environment("airflow-scheduler")
    there = {name: value for name, value in full_environment(tmp_path, Ports()).items() if name.startswith("AIRFLOW__")}
    assert {name for name, value in there.items() if here.get(name) != value} == set(DIFFERENT)
    assert here["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"


def test_logins_are_those_that_are_made():
    """Airflow's users and MLflow's are those for which `make secrets` makes passwords.

    One of them is a reader for the exporter.
    """
    users = dict(
        user.split(":")
        for user in environment("airflow-apiserver")["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].split(",")
    )
    assert users == AIRFLOW_USERS
    assert environment("airflow-scheduler")["PERENNIAL_MLFLOW_USERNAME"] == MLFLOW_USER
    assert AIRFLOW_USERS[environment("airflow-metrics")["PERENNIAL_AIRFLOW_USERNAME"]] == "viewer"


def test_executors_and_queues():
    """Without profiles nothing needs Redis.

    With them a worker serves each queue, and the GPU is asked for where it is used.
    """
    assert environment("airflow-scheduler")["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert {name: service["profiles"] for name, service in services().items() if "profiles" in service} == {
        "redis": ["celery", "gpu"],
        "airflow-worker": ["celery", "gpu"],
        "airflow-worker-gpu": ["gpu"],
        "traffic": ["traffic"],
    }
    queues = {
        name: service["command"][service["command"].index("--queues") + 1]
        for name, service in services().items()
        if "--queues" in service.get("command", ())
    }
    assert queues == {"airflow-worker": "default", "airflow-worker-gpu": "gpu"}
    assert environment("airflow-scheduler")["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] == "default"
    for found in (services()["airflow-worker-gpu"], load(ROOT / "compose/gpu.yaml")["services"]["triton"]):
        assert found["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    # Answers in TF32 differ by more than a rollout allows.
    assert load(ROOT / "compose/gpu.yaml")["services"]["triton"]["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "AIRFLOW_EXECUTOR=LocalExecutor docker compose --file docker-compose.yaml up"),
        (
            ("PROFILES=celery,traffic",),
            (
                "AIRFLOW_EXECUTOR=CeleryExecutor docker compose --file docker-compose.yaml --profile celery --profile "
                "traffic up"
            ),
        ),
        (
            ("PROFILES=gpu", "DEV=1"),
            (
                "AIRFLOW_EXECUTOR=CeleryExecutor docker compose --file docker-compose.yaml --file compose/gpu.yaml "
                "--file "
                "compose/development.yaml --profile gpu up"
            ),
        ),
    ],
)
def test_make_compose_up_takes_profiles(asked, said):
    """`make compose-up` makes the secrets first, takes limits that fit the engine.

    It gives workers the executor that sends them tasks.
    """
    lines = subprocess.run(
        ["make", "--no-print-directory", "-n", "compose-up", *asked],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.splitlines()
    assert "python3 -m embedded.keys" in lines
    assert " ".join(lines[-1].split()).startswith(f"limits=$(python3 -m embedded.room) && env $limits {said}")


def test_modules_that_are_started_are_there():
    """Every `python -m` of a service is a module of this repository, and its options are ones that it takes."""
    for name, service in services().items():
        command = service.get("command", [])
        if command[:2] == ["python", "-m"]:
            module = ROOT.joinpath(*command[2].split("."))
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), name
    from pipelines.cli import build_parser

    given = build_parser().parse_args(services()["loop-metrics"]["command"][3:])
    assert (given.command, given.host, given.port) == ("metrics", "0.0.0.0", 9109)


def test_mlflow_answers_to_its_own_names_only():
    """MLflow is behind a login, proxies artefacts, and lists the hosts it may be called by.

    The service, the loopback address, and what the user adds.
    """
    *hosts, added = environment("mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {host.partition(":")[0] for host in hosts} == {"mlflow", "127.0.0.1", "localhost"}
    assert (
        added
        == environment("gateway")["PERENNIAL_ALLOWED_HOSTS"]
        == environment("airflow-apiserver")["PERENNIAL_ALLOWED_HOSTS"]
    )
    script = (ROOT / "compose/mlflow/start.sh").read_text()
    assert "--app-name basic-auth" in script
    assert "--serve-artifacts" in script
    assert "--backend-store-uri" not in script


def test_the_gateway_has_two_workers_that_count_together():
    """Two workers share a folder for their metrics, so that Prometheus hears the same from either."""
    text = (ROOT / "compose/images/gateway.Dockerfile").read_text()
    assert '"--workers=2"' in text
    assert environment("gateway")["PROMETHEUS_MULTIPROC_DIR"].startswith("/tmp/")
    assert "command" not in services()["gateway"]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; test_monitoring.py holds the same without it"
)
def test_promtool_takes_configuration_and_rules(tmp_path):
    """Prometheus' own checker accepts its configuration and all rules."""
    shutil.copy(ROOT / "compose/prometheus/prometheus.yaml", tmp_path)
    (tmp_path / "rules").mkdir()
    for path in (ROOT / "compose/prometheus/stack.rules.yaml", ROOT / "pipelines/alerts/prometheus.rules.yaml"):
        shutil.copy(path, tmp_path / "rules")
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
