"""embedded/composed.py: PROFILE=full has the settings of docker-compose.yaml, and differs only where it says why."""

from pathlib import Path

import pytest
import yaml

from embedded import composed, full
from embedded.ports import Ports
from embedded.services import full_environment

PORTS = Ports()
FILE = yaml.safe_load(composed.FILE.read_text())
TAKEN = ("airflow-worker", "gateway", "mlflow", "loop-metrics", "airflow-metrics")


@pytest.mark.parametrize("service", TAKEN)
def test_nothing_of_the_file_is_lost(service, tmp_path):
    """Every variable that a service has in the file is there for its process.

    All but those that are named with a reason.
    """
    given = FILE["services"][service]["environment"]
    found = composed.environment(service, tmp_path, PORTS)
    dropped = {name for name, value in given.items() if name not in found and value}
    assert {name for name in dropped if "_FILE" not in name} <= composed.DIFFERS.keys()
    assert set(found) <= set(given)


@pytest.mark.parametrize("service", TAKEN)
def test_no_place_of_a_container_is_left(service, tmp_path):
    """No address of a container's network and no folder of its file system reaches a process."""
    values = " ".join(composed.environment(service, tmp_path, PORTS).values())
    for place in (
        "/run/secrets",
        "/srv/",
        "/opt/perennial",
        "/var/log",
        "0.0.0.0",
        "mlflow:",
        "triton:",
        "gateway:",
        "apiserver:",
        "${",
    ):
        assert place not in values.replace(str(tmp_path), "").replace(str(composed.ROOT), "")


def test_every_difference_is_needed():
    """A variable that is said to differ is one that the file really has, and has a reason."""
    known = {name for service in FILE["services"].values() for name in service.get("environment", {})}
    assert composed.DIFFERS.keys() <= known
    assert all(why for _, why in composed.DIFFERS.values())


def test_addresses_become_ours(tmp_path):
    """A service's name and port become the loopback address and our port; a longer number is left alone."""
    ports = Ports(mlflow=15000, triton_grpc=18001)
    assert (
        composed.translate("http://mlflow:5000/x triton:8001 triton:80011", tmp_path, ports)
        == "http://127.0.0.1:15000/x 127.0.0.1:18001 triton:80011"
    )


def test_scrapes_and_rules_are_composes_own(tmp_path):
    """Prometheus' configuration names our ports and nothing of a container's network."""
    text = composed.translate(
        (composed.ROOT / "compose" / "prometheus" / "prometheus.yaml").read_text(), tmp_path, PORTS
    )
    targets = [
        target
        for job in yaml.safe_load(text)["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert sorted(targets) == sorted(f"127.0.0.1:{port}" for port in (8090, 8002, 9109, 9112, 9090, 9093))


def test_airflow_knows_no_sqlite_and_no_open_door(tmp_path):
    """The full profile's Airflow gets its database and keys from secrets, Celery.

    It gets no setting that makes everybody an admin.
    """
    env = full_environment(tmp_path, PORTS, profile="full")
    assert env["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    assert not [value for value in env.values() if "sqlite:" in value]
    assert not [name for name in env if name.endswith(("FERNET_KEY", "JWT_SECRET", "SQL_ALCHEMY_CONN"))]


def test_openlineage_is_told_where_to_go(tmp_path, monkeypatch):
    """Both profiles send their steps to the backend of ``OPENLINEAGE_URL``, in the same way."""
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9999")
    told = [
        {
            name: value
            for name, value in full_environment(tmp_path, PORTS, profile=profile).items()
            if "LINEAGE__" in name
        }
        for profile in ("embedded", "full")
    ]
    assert told[0] == told[1]
    assert "127.0.0.1:9999" in told[0]["AIRFLOW__OPENLINEAGE__TRANSPORT"]


def test_missing_programs_are_named_with_their_packages(monkeypatch):
    """Without the servers' programs nothing starts, and one command says what to install."""
    monkeypatch.setattr(full.shutil, "which", lambda _program: None)
    monkeypatch.setattr(full.postgres, "INSTALLED", Path("/nowhere"))
    with pytest.raises(
        full.ConfigError, match=r"apt-get install .*postgresql-15 prometheus prometheus-alertmanager redis-server"
    ):
        full.require()
