"""`make test-full`: the loop on PROFILE=full, and a worker that is killed in the middle of a training.

    python -m benchmarks.full_stack [--home DIR]

A first champion of `loans` is trained through Airflow; when its training has a checkpoint, the GPU queue's worker is ended with
SIGKILL, and started again as compose would. What is asserted: tasks run in Celery workers and the training on
its queue; no process of the killed worker lives 8 s later; the retry goes on at the checkpoint; one MLflow run per candidate; rows in
all three databases; every target of Prometheus is up and every rule is loaded. The result is benchmarks/results/full-stack.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import yaml

from benchmarks.record import goal, record
from embedded import full, http, stack
from embedded.airflow import Airflow, client
from embedded.ports import HOST, Ports
from embedded.services import PARAMS, settings_of
from pipelines import ledger
from pipelines.config import CASES_ROOT, Settings
from pipelines.storage import read_manifest

CASE = "loans"
AS_OF = datetime(2026, 11, 1, tzinfo=UTC)
RUN_SECONDS = 1200.0
GONE_SECONDS = 8.0
QUEUE = {"resources": {"queue": "gpu"}}
LONG = {"epochs": 150, "checkpoint_every": 20, "ranks": 2}
"""A training that lasts long enough to be killed in its middle."""


def main() -> int:
    """Run it all; 0 if every assertion holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=None, help="state folder (default: a new one below /tmp)")
    home = (parser.parse_args().home or Path(tempfile.mkdtemp(prefix="perennial-full-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)  # PostgreSQL's user passes through
    began = time.monotonic()
    write_params(home, LONG)
    starts: dict[str, float] = {}
    running = stack.start(home, Ports.free(), profile="full", extra_env={"PERENNIAL_SCHEDULES": "0"}, deadline=RUN_SECONDS, on_ready=starts.__setitem__)
    print(f"up after {time.monotonic() - began:.0f} s", flush=True)
    try:
        settings = settings_of(home, running.env)
        facts = {**killed(settings), **databases(home, running.ports), **watched(running.ports)}
    finally:
        left = stack.stop(home)
    facts |= {"processes_left": left, "seconds_to_ready": {name: round(seconds, 1) for name, seconds in starts.items()}}
    goals = [
        goal("seconds until nothing of the killed worker lived", facts["killed"]["gone_after_seconds"], GONE_SECONDS),
        goal("step at which the retry went on", facts["killed"]["resumed_from_step"] or 0, 1, "higher"),
        goal("MLflow runs of the killed candidate", facts["killed"]["mlflow_runs"], 1),
        goal("processes left after the stop", left, 0),
        goal("targets of Prometheus that are down", len(facts["prometheus"]["down"]), 0),
    ]
    record("full-stack", rows=[], goals=goals, seconds=time.monotonic() - began, packages=("apache-airflow-core", "celery", "psycopg", "mlflow"), more=facts)
    return 0 if all(one["holds"] for one in goals) else 1


def write_params(home: Path, train: dict[str, Any]) -> None:
    """The case's parameters with its training on the GPU queue."""
    own = yaml.safe_load((CASES_ROOT / CASE / "params.yaml").read_text())
    path = home / PARAMS / f"{CASE}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**own, **QUEUE, "train": {**own["train"], **train}}))


def killed(settings: Settings) -> dict[str, Any]:
    """The first champion, whose worker is killed while its training has a checkpoint: who is left, and what the retry makes of it."""
    from pipelines.registry import live

    home, airflow = settings.root, client(settings)
    airflow.wait_for_dags([f"{CASE}_training"], timeout=RUN_SECONDS)
    airflow.unpause(f"{CASE}_training")
    work = settings.run_dir(CASE, AS_OF)
    run = airflow.trigger_dag(f"{CASE}_training", "killed", {"as_of": AS_OF.isoformat()})
    _until(lambda: list(work.glob(".train.*/checkpoints/step-*")), "a checkpoint")
    found = stack.read(home)
    assert found is not None
    [worker] = [process for process in found.processes if process.name == "worker-gpu"]
    # The pool's processes and all below them: the task, its agent, its ranks. A child of the worker without any is Airflow's cleaner of bundles.
    pool = [child for child in psutil.Process(worker.pid).children() if child.children()]
    tree = [*pool, *(below for child in pool for below in child.children(recursive=True))]
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    _, living = psutil.wait_procs(tree, timeout=3 * GONE_SECONDS)
    gone = time.monotonic() - began
    print(f"{len(tree)} processes of the worker, {len(living)} left after {gone:.1f} s", flush=True)
    stack.again(home, "worker-gpu")
    ended = airflow.wait(f"{CASE}_training", run, RUN_SECONDS)
    again = time.monotonic() - began
    tasks = instances(airflow, run)
    assert ended["state"] == "success", {task["task_id"]: task["state"] for task in tasks}
    queues = {task["task_id"]: task["queue"] for task in tasks}
    # A worker says that a task has ended a moment after Airflow knows it.
    _until(lambda: worked(home, "default") >= len(tasks) - 1, "the last task in the log of its worker", 30)
    executed = {queue: worked(home, queue) for queue in full.QUEUES}
    assert [name for name, queue in queues.items() if queue == "gpu"] == ["train"]
    assert executed == {"default": len(tasks) - 1, "gpu": 1}
    [train] = [task for task in tasks if task["task_id"] == "train"]
    manifest, champion = read_manifest(work / "train"), ledger.head(settings.ledger, CASE)
    assert champion is not None
    assert train["try_number"] > 1
    return {
        "killed": {
            "processes": len(tree),
            "left": [process.pid for process in living],
            "gone_after_seconds": round(gone, 2),
            "finished_after_seconds": round(again, 1),
            "tries": train["try_number"],
            "resumed_from_step": manifest.facts["resumed_from"],
            "mlflow_runs": len(live.find(settings, CASE, manifest.key, AS_OF)),
        },
        "run": {
            "task_seconds": {task["task_id"]: round(task["duration"], 2) for task in tasks},
            "queues": queues,
            "executed_by_worker": executed,
            "champion": champion.champion,
            "reason": champion.reason,
        },
    }


def databases(home: Path, ports: Ports) -> dict[str, Any]:
    """Rows in PostgreSQL, by database and table."""
    wanted = {"ledger": ("releases", "verdicts"), "airflow": ("task_instance", "celery_taskmeta"), "mlflow": ("runs", "model_versions")}
    counts: dict[str, int] = {}
    for name, tables in wanted.items():
        word = full.secret(home, f"{name}_db_password")
        with psycopg.connect(host=HOST, port=ports.postgres, user=name, password=word, dbname=name) as connection:
            for table in tables:
                [count] = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
                counts[f"{name}.{table}"] = count
    assert all(counts.values()), counts
    return {"rows": counts}


def watched(ports: Ports) -> dict[str, Any]:
    """Prometheus' targets, rules and the alerts that it has now; and the panels of the dashboards whose queries find nothing."""
    url = f"http://{HOST}:{ports.prometheus}/api/v1"
    _until(lambda: all(one["health"] == "up" for one in http.call(f"{url}/targets")["data"]["activeTargets"]), "Prometheus' targets", 150, must=False)
    targets = http.call(f"{url}/targets")["data"]["activeTargets"]
    rules = [rule for group in http.call(f"{url}/rules")["data"]["groups"] for rule in group["rules"]]
    assert not [rule for rule in rules if rule["health"] == "err"]
    return {
        "prometheus": {
            "targets": len(targets),
            "down": [one["scrapePool"] for one in targets if one["health"] != "up"],
            "rules": len(rules),
            "firing": sorted({rule["name"] for rule in rules if rule["state"] == "firing"}),
            "alertmanagers": len(http.call(f"{url}/alertmanagers")["data"]["activeAlertmanagers"]),
        }
    }


def instances(airflow: Airflow, run: str) -> list[dict[str, Any]]:
    """The task instances of a training run."""
    found: list[dict[str, Any]] = airflow.call("GET", f"/dags/{CASE}_training/dagRuns/{run}/taskInstances")["task_instances"]
    return found


def worked(home: Path, queue: str) -> int:
    """How many tasks the log of a queue's worker says to have succeeded."""
    return sum("Task execute_workload" in line and " succeeded in " in line for line in (home / "logs" / f"worker-{queue}.log").read_text().splitlines())


def _until(done: Any, what: str, seconds: float = RUN_SECONDS, *, must: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            if must:
                raise SystemExit(f"{what} did not come within {seconds:g} s")
            return
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
