"""From an empty folder to a rollback with the wheel alone: no checkout, and not a line of code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedded.ports import Ports, variable
from tests.package import (
    called,
    environment,
    install,
    install_wheel,
    lend_triton,
    made,
    modules,
    uninstall,
    without_tools,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]
CASE, ROWS, DAYS, DELAY = "churn", 50_000, 200, 3
BUDGET_SECONDS = 300.0
"""What the way from `init` to the rollback may take after the installation, on two cores that nobody else uses."""
CORES = os.cpu_count() or 1
ROW = {"age": 40, "income": None, "plan": "basic", "region": "north", "calls": 3}
PACKAGE = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-models"
version = "1.0"

[project.entry-points."perennial.cases"]
churn = "acme_models.churn"
"""


def write_csv(path: Path, rows: int = ROWS) -> None:
    """Customers of the days up to the last midnight, with holes; the newest days' labels are not there yet."""
    rng = np.random.default_rng(7)
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    times = [end - timedelta(seconds=int(second)) for second in np.sort(rng.integers(1, DAYS * 86_400, rows))[::-1]]
    age, calls = rng.integers(18, 90, rows), rng.poisson(2, rows)
    income, plan = rng.lognormal(10, 0.5, rows).round(2), rng.choice(["basic", "plus", "pro"], rows, p=[0.6, 0.3, 0.1])
    logit = -1.2 + 0.03 * (age - 50) + 0.5 * (plan == "basic") + 0.8 * (calls > 4) - 0.3 * (income > 30_000)
    churned = rng.random(rows) < 1 / (1 + np.exp(-logit))
    region = rng.choice(["north", "south", "east", "west"], rows)

    def holes(values, share):
        return pl.Series(values.tolist()).set(pl.Series(rng.random(rows) < share), None)

    known = pl.Series([moment < end - timedelta(days=DELAY) for moment in times])
    pl.DataFrame(
        {
            "customer": [f"c{row:06}" for row in range(rows)],
            "signed_at": [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in times],
            "age": holes(age, 0.08),
            "income": holes(income, 0.15),
            "plan": plan,
            "region": holes(region, 0.05),
            "calls": calls,
            "churned": pl.Series(churned.astype(int)).set(~known, None),
        }
    ).write_csv(path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` of an environment with the wheel, this one's libraries and Triton: what an installation leaves."""
    folder = tmp_path_factory.mktemp("installed")
    programs = install_wheel(folder)
    lend_triton(folder / "venv")
    return programs


@pytest.fixture(scope="module")
def path(installed):
    """A PATH on which there is neither git nor make nor DVC."""
    return without_tools(installed.parent)


@pytest.fixture
def shell(installed, path, tmp_path):
    """Types a command of `perennial` in an empty folder; whatever runs there afterwards is stopped."""
    folder = tmp_path / "work"
    folder.mkdir()

    def typed(*words: str, **more: str) -> str:
        return called([installed / "perennial", *words], folder, PATH=path, **more)

    typed.folder = folder
    yield typed
    down = subprocess.run([installed / "perennial", "down"], cwd=folder, env=environment(PATH=path), check=False)
    assert down.returncode == 0


def curl(url: str, body: object = None, *headers: str) -> dict:
    """What curl gets, as JSON."""
    sent = [] if body is None else ["--data", json.dumps(body), "--header", "Content-Type: application/json"]
    given = [word for header in headers for word in ("--header", header)]
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *sent, *given, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def address(folder: Path, service: str) -> str:
    """Where a service of the stack is, as the state folder says."""
    lines = dict(line.split("=", 1) for line in (folder / "runs" / "local" / "env").read_text().splitlines())
    return lines[f"PERENNIAL_{service.upper()}_URL"]


def watched(airflow: str, conf: dict, seconds: float = 600) -> None:
    """A run of the drift DAG, started as its button does, ends well."""
    dag = f"{airflow}/api/v2/dags/{CASE}_drift/dagRuns"
    run = curl(dag, {"logical_date": None, "conf": conf})["dag_run_id"]
    give_up = time.monotonic() + seconds
    while (state := curl(f"{dag}/{run.replace('+', '%2B')}")["state"]) not in ("success", "failed"):
        assert time.monotonic() < give_up, state
        time.sleep(0.5)
    assert state == "success"


def predicted(gateway: str, key: str, version: int, **more: object) -> dict:
    """The answer to a row, by this version: a busy machine may still be training it, or switching to it."""
    give_up = time.monotonic() + 300
    while True:
        answer = curl(f"{gateway}/v1/cases/{CASE}/predict", {"rows": [ROW | more]}, key)
        if "rows" in answer and answer["rows"][0]["version"] == version:
            return answer["rows"][0]
        assert "rows" in answer or "no champion yet" in answer["error"], answer
        assert time.monotonic() < give_up, answer
        time.sleep(0.5)


def loop(shell) -> None:
    """Start the stack, ask the model, send labels, watch for drift, release another version and take it back."""
    folder = shell.folder
    # Its usual ports may be taken on this machine.
    shell("up", **{variable(name): str(port) for name, port in asdict(Ports.free()).items()})
    state = folder / "runs" / "local"
    gateway, key = address(folder, "gateway"), f"X-API-Key: {(state / 'api_key').read_text().strip()}"
    before = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    answer = predicted(gateway, key, 1, prediction_id="mine")
    assert 0 < answer["score"] < 1
    labels = [{"prediction_id": "mine", "label": 1}]
    assert curl(f"{gateway}/v1/cases/{CASE}/labels", {"labels": labels}, key) == {"accepted": 1}
    # Other shells of the same folder: nothing is handed on but the folder.
    watched(address(folder, "airflow"), {"as_of": before.isoformat()})
    [report] = (state / "artefacts" / CASE).glob(f"{before:%Y%m%dT%H%M%S}Z/drift/report.json")
    seen = json.loads(report.read_text())
    assert (seen["model_version"], seen["quality"]["problems"]) == (1, [])
    assert seen["current_rows"] > 100
    made_now = json.loads(shell("retrain", "--case", CASE, "--as-of", before.isoformat(), "--reason", "another one"))
    assert made_now["version"] == 2
    if made_now["champion"] != 2:
        shell("release", "--case", CASE, "--version", "2", "--reason", "to see it", "--despite-verdict")
    assert json.loads(shell("rollback", "--case", CASE, "--reason", "the first was better"))["serves"] == 1
    assert "healthy" in shell("status")
    history = json.loads(shell("history", "--case", CASE))["releases"]
    assert [release["champion"] for release in history] == [1, 2, 1]
    predicted(gateway, key, 1)
    out_and_back(shell, gateway, key)


def out_and_back(shell, gateway: str, key: str) -> None:
    """Nothing is wrong with the installation; the case is retired, its DAGs rest, and it is taken back."""
    lines = json.loads(shell("doctor", "--json"))["checks"]
    assert {line["check"] for line in lines if line["state"] == "ok"} >= {"MLflow", "Airflow", "Triton", "gateway"}
    drift = f"{address(shell.folder, 'airflow')}/api/v2/dags/{CASE}_drift"

    def answered(word: str) -> dict:
        """The gateway's answer once it follows the ledger."""
        give_up = time.monotonic() + 60
        while word not in (answer := curl(f"{gateway}/v1/cases/{CASE}/predict", {"rows": [ROW]}, key)):
            assert time.monotonic() < give_up, answer
            time.sleep(0.5)
        return answer

    shell("retire", CASE, "--reason", "the contract ends")
    assert "the contract ends" in answered("error")["error"]
    assert curl(drift)["is_paused"]
    shell("retire", CASE, "--undo", "--reason", "it goes on")
    assert answered("rows")["rows"][0]["version"] == 1
    assert not curl(drift)["is_paused"]


def hold(began: float, load: float) -> None:
    """Hold the time against the budget, where the machine was not busy with other things."""
    seconds = time.monotonic() - began
    assert seconds < BUDGET_SECONDS or load > CORES / 2, f"{seconds:.0f} s, with a load of {load:.1f} before"


def test_from_a_csv_to_a_rollback_without_code(installed, shell):
    """With a CSV of 50,000 rows in an empty folder: init, try, up, a prediction, labels, a drift run, a rollback."""
    python, folder = installed / "python", shell.folder
    for path in modules(python, folder, ("perennial", "pipelines.cli", "embedded", "serving")).values():
        assert path.is_relative_to(installed.parent)
    write_csv(folder / "customers.csv")
    load, began = os.getloadavg()[0], time.monotonic()
    of = ("--from", "customers.csv", "--label", "churned", "--time", "signed_at", "--id", "customer")
    assert json.loads(shell("init", CASE, *of))["folder"] == str(folder / "cases" / CASE)
    assert json.loads(shell("try", CASE))["decision"] == "promote"
    loop(shell)
    hold(began, load)


def test_a_case_of_another_repository_as_an_entry_point(installed, shell, tmp_path):
    """The same with a case in a git repository of its own, which is installed as a package and then gone."""
    folder, repository = shell.folder, tmp_path / "acme"
    package = repository / "acme_models"
    package.mkdir(parents=True)
    (repository / "pyproject.toml").write_text(PACKAGE)
    (package / "__init__.py").touch()
    write_csv(folder / "customers.csv")
    load, began = os.getloadavg()[0], time.monotonic()
    of = ("--from", "customers.csv", "--label", "churned", "--time", "signed_at", "--id", "customer")
    shell("init", CASE, *of, "--to", str(package))
    about = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "-A"), (*about, "commit", "-qm", "A case")):
        made(["git", *words], repository)
    install(installed.parent, repository)
    shutil.rmtree(repository)
    assert not (folder / "cases").exists()
    try:
        assert json.loads(shell("try", CASE))["decision"] == "promote"
        loop(shell)
        hold(began, load)
    finally:  # others have a case of this name
        uninstall(installed.parent, "acme-models")


def test_a_case_that_has_nothing_but_its_log(installed, shell):
    """Rows of who answers today come in by one command, and by nothing else: then the loop is the same.

    The drift run after the first champion sees the imported rows beside the gateway's own, and the next training learns
    from both.
    """
    folder = shell.folder
    write_csv(folder / "customers.csv")
    of = ("--from", "customers.csv", "--label", "churned", "--time", "signed_at", "--id", "customer")
    shell("init", CASE, *of)
    params = folder / "cases" / CASE / "params.yaml"
    own = params.read_text()
    declared, _, _ = own.partition("\nsource:")
    assert declared != own
    params.write_text(f"{declared}\nsource: {{kind: log}}\n")
    answer = json.loads(shell("import", CASE, *of))
    assert answer["rows"]["added"] == answer["rows"]["delivered"] == ROWS
    assert json.loads(shell("import", CASE, *of))["rows"]["added"] == 0
    loop(shell)
    made = (folder / "runs" / "local" / "artefacts" / CASE).glob("*/ingest/manifest.json")
    assert {json.loads(path.read_text())["facts"]["origin"] for path in made} == {"log"}


def test_the_demo_is_replayed(shell):
    """`perennial demo` replays generated loans through all services, clean, and leaves none running."""
    said = shell("demo", "--case", "loans", "--fast", "--ticks", "3")
    assert "perennial up --home" in said.replace("\n", " ")
    summary = json.loads((shell.folder / "runs" / "demo" / "summary.json").read_text())
    assert summary["rows_sent"] == summary["rows_acknowledged"] == summary["rows_logged"] > 0
    assert (summary["errors"], summary["processes_left"]) == (0, 0)
