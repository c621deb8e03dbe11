"""OpenLineage's backend may be dead: tasks do not wait for it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from embedded.airflow import environment
from embedded.ports import Ports

ROOT = Path(__file__).parents[2]
DAG = ROOT / "tests" / "plugins" / "lineage_cost.py"


def _task(home: Path, **more: str) -> dict:
    """What a task takes in an Airflow of its own."""
    (home / "dags").mkdir(parents=True)
    shutil.copy(DAG, home / "dags")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "OPENLINEAGE"))}
    env |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PERENNIAL_HOME": str(home / "state"),
        "PERENNIAL_CONNECTIONS": "none",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, home / "dags" / DAG.name],
        env=env | more,
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"state"')]
    return json.loads(line)


@pytest.mark.slow
@pytest.mark.long
def test_a_dead_backend_adds_no_second_to_a_task(tmp_path, monkeypatch):
    """With nobody at the address, and with somebody who never answers, a task takes less than a second more.

    Its events are lost, and it ends well.
    """
    without = _task(tmp_path / "without")
    assert (without["state"], without["listens"]) == ("success", False)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        addresses = {"silent": silent.getsockname()[1], "gone": gone.getsockname()[1]}
        gone.close()
        for name, port in addresses.items():
            monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
            told = environment(tmp_path / name, Ports())
            assert "OPENLINEAGE_URL" not in told
            own = {variable: value for variable, value in told.items() if "OPENLINEAGE" in variable}
            found = _task(tmp_path / name / "airflow_home", **own)
            assert (found["state"], found["listens"]) == ("success", True)
            assert found["seconds"] - without["seconds"] < 1, (name, found, without)


def test_without_an_address_nothing_is_told(tmp_path, monkeypatch):
    """A stack that was given no backend has no transport; a key goes to the backend that was named with it alone."""
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "secret")
    assert not [name for name in environment(tmp_path, Ports()) if "OPENLINEAGE" in name]
    monkeypatch.setenv("OPENLINEAGE_URL", "https://lineage.example.org")
    told = environment(tmp_path, Ports())
    assert json.loads(told["AIRFLOW__OPENLINEAGE__TRANSPORT"])["auth"] == {"type": "api_key", "apiKey": "secret"}
    assert "OPENLINEAGE_API_KEY" not in told
