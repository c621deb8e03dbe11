"""kill -9 of the train task of the real Airflow, in a stack of its own.

The scheduler tries again, and the try goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks import interrupt, job
from benchmarks.proof.reproduce import command
from embedded import stack
from embedded.airflow import Airflow
from embedded.ports import Ports
from pipelines.case_files import CASES_ROOT
from pipelines.errors import PerennialError
from pipelines.settings import Settings, read_settings
from pipelines.storage import read_manifest

CASE = "loans"
DAG = "loans_training"
AS_OF = datetime(2020, 5, 1, tzinfo=UTC)
TRAIN = {"epochs": 40, "batch_size": 64, "checkpoint_every": 50}
"""Long enough, at some seconds, for a task to be killed in its middle."""
FIRST = 100
"""The step whose checkpoint must be there before the kill."""


def killed_tasks(home: Path, strategies: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One DAG run under every strategy.

    Each one's train task is killed once, and the same training is done undisturbed after it.
    """
    params_dir = home.parent / "params"
    params_dir.mkdir(parents=True)
    put(params_dir, strategies[0])
    running = stack.start(
        home, Ports.free(), extra_env={"PERENNIAL_SCHEDULES": "0", "PERENNIAL_PARAMS_DIR": str(params_dir)}
    )
    try:
        environment = {name: value for name, value in running.env.items() if name.startswith("PERENNIAL_")}
        settings = read_settings(
            **{name.removeprefix("PERENNIAL_").lower(): value for name, value in environment.items()}
        )
        airflow = Airflow(settings.airflow_url)
        airflow.wait_for_dags([DAG])
        airflow.unpause(DAG)
        for number, strategy in enumerate(strategies):
            put(params_dir, strategy)
            yield killed_task(airflow, settings, environment, strategy, AS_OF + timedelta(days=number))
    finally:
        stack.stop(home)


def put(folder: Path, strategy: str) -> None:
    """Write the case's parameters for a strategy: what the next task reads."""
    params = yaml.safe_load((CASES_ROOT / CASE / "params.yaml").read_text())
    params["training_rows"] = "source"
    params["train"] |= {**TRAIN, **job.STRATEGIES[strategy]}
    part = folder / f".{CASE}"
    part.write_text(yaml.safe_dump(params, default_flow_style=False))
    os.replace(part, folder / f"{CASE}.yaml")


def killed_task(
    airflow: Airflow, settings: Settings, environment: dict[str, str], strategy: str, as_of: datetime
) -> dict[str, Any]:
    """One row of the table."""
    run_dir = settings.run_dir(CASE, as_of)
    run = airflow.trigger_dag(DAG, conf={"as_of": as_of.isoformat()})

    def newest() -> int:
        return max(
            (step for work in run_dir.glob(".train.k*") for step in interrupt.steps_in(work / "checkpoints")), default=0
        )

    interrupt.wait_for(
        lambda: newest() >= FIRST, (run_dir / "train").exists, f"the checkpoint of step {FIRST} in {run_dir}"
    )
    work = next(run_dir.glob(".train.k*"))
    tree = job.holders(work)
    task = next(pid for pid in tree if parent(pid) not in tree)
    kept = interrupt.steps_in(work / "checkpoints")
    job.kill(task)
    left = gone_but_for_a_retry(tree)
    ended = airflow.wait(DAG, run)
    tries = next(each["try_number"] for each in airflow.tasks(DAG, run) if each["task_id"] == "train")
    if ended["state"] != "success":
        raise PerennialError(
            f"{DAG} {run} ended as {ended['state']} after its train task was killed: "
            f"{airflow.log(DAG, run, 'train', tries)[-1500:]}"
        )
    disturbed = read_manifest(run_dir / "train").facts
    os.rename(run_dir / "train", run_dir / "train-disturbed")
    whole = command(environment, "train", "--case", CASE, "--as-of", as_of.isoformat())["facts"]
    return {
        "fault": "kill -9 of the Airflow task",
        "strategy": strategy,
        "same": disturbed["weights_sha256"] == whole["weights_sha256"],
        "left": left,
        "checkpoints": kept,
        "resumed_from": disturbed["resumed_from"],
        "weights": disturbed["weights_sha256"][:16],
        "told": f"Airflow's try {tries} ended the run as {ended['state']}",
    }


def gone_but_for_a_retry(tree: Sequence[int]) -> int:
    """How many of a killed task's own processes are still there after some seconds: Airflow's retry has others."""
    until = time.monotonic() + interrupt.GONE_SECONDS
    while (left := sum(alive(pid) for pid in tree)) and time.monotonic() < until:
        time.sleep(interrupt.POLL_SECONDS)
    return left


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def parent(pid: int) -> int:
    """The process that started ``pid``; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
