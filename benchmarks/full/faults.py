"""What goes wrong on PROFILE=full on purpose.

A worker that is killed in mid training, twenty drift runs at once, a limit that two workers share.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.full.episode import forget, provoke
from embedded import http, stack
from embedded.airflow import Airflow
from embedded.ports import HOST, Ports
from embedded.processes import end, launch
from embedded.services import full_environment, services
from pipelines import ledger
from pipelines.errors import Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.storage import read_manifest

CASE = "loans"
RUN_SECONDS = 900.0
GONE_SECONDS = 8.0
RUNS = 20
RATE = 50
REQUESTS = 300


def killed(settings: Settings, airflow: Airflow, as_of: datetime) -> dict[str, Any]:
    """The case's first champion, whose worker is ended with SIGKILL while its training has a checkpoint.

    Who is left, and what the retry makes of it.
    """
    from pipelines.registry import live

    home = settings.root
    dag = f"{CASE}_training"
    work = settings.run_dir(CASE, as_of)
    airflow.wait_for_dags([dag])
    airflow.unpause(dag)
    run = airflow.trigger_dag(dag, "killed", {"as_of": as_of.isoformat()})
    until(lambda: list(work.glob(".train.*/checkpoints/step-*")), "a checkpoint")
    found = stack.read(home)
    assert found is not None
    [worker] = [process for process in found.processes if process.name == "worker-gpu"]
    tree = psutil.Process(worker.pid).children(recursive=True)
    names = {process.pid: _title(process) for process in tree}
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    _, living = psutil.wait_procs(tree, timeout=3 * GONE_SECONDS)
    gone = time.monotonic() - began
    print(f"worker-gpu killed: {len(tree)} processes below it, {len(living)} left after {gone:.1f} s", flush=True)
    stack.again(home, "worker-gpu")
    ended = airflow.wait(dag, run, RUN_SECONDS)
    again = time.monotonic() - began
    tasks = airflow.tasks(dag, run)
    assert ended["state"] == "success", {task["task_id"]: task["state"] for task in tasks}
    [train] = [task for task in tasks if task["task_id"] == "train"]
    manifest = read_manifest(work / "train")
    champion = ledger.head(settings.ledger, CASE)
    assert champion is not None
    print(
        f"the run went on and ended {again:.0f} s after the kill, from step {manifest.facts['resumed_from']}",
        flush=True,
    )
    return {
        "processes": sorted(names.values()),
        "left": sorted(names[process.pid] for process in living),
        "gone_after_seconds": round(gone, 2),
        "finished_after_seconds": round(again, 1),
        "queue": train["queue"],
        "tries": train["try_number"],
        "resumed_from_step": manifest.facts["resumed_from"],
        "mlflow_runs": len(live.find(settings, CASE, manifest.key, as_of)),
        "champion": champion.champion,
    }


def _title(process: psutil.Process) -> str:
    """What a process says that it is: Airflow names task, supervisor and ranks by the task's id."""
    return (
        " ".join(part for part in process.cmdline() if part).rpartition(" -- ")[0]
        or process.cmdline()[0].partition(":")[0]
    )


def twenty(settings: Settings, airflow: Airflow, start: datetime) -> dict[str, Any]:
    """Twenty drift runs of one window, triggered together, of which each finds the episode.

    How many trainings they end in.
    """
    params = load_params(CASE)
    dag = f"{CASE}_drift"
    training = f"{CASE}_training"
    as_of, episode = provoke(settings, params, start)
    forget(settings, CASE, as_of)
    before = {run["dag_run_id"] for run in airflow.runs(training)}
    airflow.unpause(dag)
    began = time.monotonic()
    with ThreadPoolExecutor(RUNS) as pool:
        ids = list(
            pool.map(
                lambda number: airflow.trigger_dag(dag, f"at_once_{number}", {"as_of": as_of.isoformat()}), range(RUNS)
            )
        )
    airflow.wait_quiet([dag, training], RUN_SECONDS)
    seconds = time.monotonic() - began
    states = Counter(airflow.run(dag, run)["state"] for run in ids)
    asked = Counter(task["state"] for run in ids for task in airflow.tasks(dag, run) if task["task_id"] == "retrain")
    trained = [run for run in airflow.runs(training) if run["dag_run_id"] not in before]
    print(
        f"{RUNS} drift runs at once: {dict(states)}, {len(trained)} training run(s), after {seconds:.0f} s", flush=True
    )
    return {
        "runs": RUNS,
        "as_of": as_of.isoformat(),
        "states": dict(states),
        "retrain_tasks": dict(asked),
        "episodes": [row["episode"] for row in ledger.episodes(settings.ledger, CASE)],
        "training_runs": [run["dag_run_id"] for run in trained],
        "training_states": dict(Counter(run["state"] for run in trained)),
        "named_by_episode": [run["dag_run_id"] for run in trained] == [f"drift__{episode}"],
        "verdicts": sum(
            datetime.fromisoformat(row["as_of"]) == as_of for row in ledger.verdicts(settings.ledger, CASE)
        ),
        "seconds": round(seconds, 1),
    }


def limited(home: Path, ports: Ports) -> dict[str, Any]:
    """A gateway of two workers with a low rate beside the stack's own.

    How many of many requests it lets in, and how many workers answered. The requests are empty: they are counted,
    refused as empty, and leave nothing in the log.
    """
    own = replace(ports, gateway=Ports.free().gateway)
    env = full_environment(home, own, profile="full")
    [service] = [
        service for service in services(home, own, env, traffic=False, profile="full") if service.name == "gateway"
    ]
    metrics = home / "gateway" / "limited"
    metrics.mkdir(parents=True, exist_ok=True)
    given = {**service.env, "PERENNIAL_GATEWAY_RATE": f"{RATE}/day", "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    url = f"http://{HOST}:{own.gateway}"
    key = (home / "secrets" / "gateway_api_key").read_text().strip()

    def one(_number: int) -> int:
        # A connection of its own each: the kernel gives it to either worker.
        return httpx.post(
            f"{url}/v1/cases/{CASE}/predict", json={"rows": []}, headers={"X-API-Key": key}, timeout=20, trust_env=False
        ).status_code

    process = launch("gateway-limited", service.argv, given, home / "logs" / "gateway-limited.log")
    try:
        until(
            lambda: http.status(f"{url}/readyz") == 200 and len(_workers(metrics)) > 1, "a gateway with two workers", 90
        )
        with ThreadPoolExecutor(4) as pool:
            answers = Counter(pool.map(one, range(REQUESTS)))
    finally:
        end([process], "of no stack")
    let_in = REQUESTS - answers[429]
    print(f"two workers, {RATE} requests a day: {let_in} of {REQUESTS} were let in", flush=True)
    return {
        "rate": f"{RATE}/day",
        "requests": REQUESTS,
        "answers": {str(status): count for status, count in sorted(answers.items())},
        "let_in": let_in,
    }


def _workers(folder: Path) -> set[str]:
    """The processes that keep counters in ``folder``."""
    return {path.stem.rpartition("_")[2] for path in folder.glob("*.db")}


def until(done: Callable[[], Any], what: str, seconds: float = RUN_SECONDS) -> None:
    """Wait for ``done``; Unavailable naming ``what`` did not come."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} did not come within {seconds:g} s")
        time.sleep(0.2)
