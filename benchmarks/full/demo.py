"""The FAST demo on PROFILE=full against the same on the embedded stack.

The same keys, files, verdicts, releases and states.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from embedded import full
from embedded.airflow import Airflow
from embedded.ports import HOST, Ports
from pipelines import ledger
from pipelines.errors import PerennialError
from pipelines.settings import Settings
from pipelines.storage import read_manifest

PROVENANCE = {
    "record.json": "who trained, when, where",
    "metrics.jsonl": "seconds of every step",
    "training.png": "the same, drawn",
    "index.html": "addresses of MLflow and Airflow",
    "drift.html": "random ids of Evidently",
}
"""Files that tell of the one run, and cannot be the same twice; and what of."""


def play(home: Path, profile: str, case: str | None = None) -> dict[str, Any]:
    """One FAST demo on ``home``, its stack left running on PROFILE=full; its summary.

    PerennialError if it was not clean.
    """
    command = [
        sys.executable,
        "-m",
        "embedded.demo",
        "--fast",
        "--home",
        str(home),
        "--profile",
        profile,
        *(["--case", case] if case else []),
    ]
    done = subprocess.run(
        [*command, *(["--keep"] if profile == "full" else [])], check=False, env={**os.environ, "COLUMNS": "160"}
    )
    if done.returncode:
        raise PerennialError(f"the demo on PROFILE={profile} ended with {done.returncode}: see {home / 'logs'}")
    found: dict[str, Any] = json.loads((home / "summary.json").read_text())
    return found


def taken(settings: Settings, case: str) -> dict[str, dict[str, Any]]:
    """What a demo left behind, in the form in which two are compared.

    Manifests' keys, files' hashes, verdicts, releases, episodes.
    """
    kinds = (_manifests, _files, _verdicts, _releases, _episodes)
    return {kind.__name__.strip("_"): kind(settings, case) for kind in kinds}


def compared(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many of what two demos left are the same, and the names of those that are not."""
    return {kind: _same(found, other[kind]) for kind, found in one.items()}


def _same(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    names = sorted({*one, *other})
    differ = [name for name in names if one.get(name) != other.get(name)]
    return {"count": len(names), "equal": len(names) - len(differ), "differ": differ}


def _committed(settings: Settings, case: str) -> list[Path]:
    return sorted(path.parent for path in (settings.root / "artefacts" / case).glob("*/*/manifest.json"))


def _manifests(settings: Settings, case: str) -> dict[str, Any]:
    return {f"{folder.parent.name}/{folder.name}": read_manifest(folder).key for folder in _committed(settings, case)}


def _files(settings: Settings, case: str) -> dict[str, Any]:
    return {
        f"{folder.parent.name}/{folder.name}/{name}": sha
        for folder in _committed(settings, case)
        for name, sha in read_manifest(folder).files.items()
        if Path(name).name not in PROVENANCE
    }


def _verdicts(settings: Settings, case: str) -> dict[str, Any]:
    return {
        f"{row['as_of']} {row['trigger']} {row['gate_key'][:12]}": row["verdict"]
        for row in ledger.verdicts(settings.ledger, case)
    }


def _releases(settings: Settings, case: str) -> dict[str, Any]:
    wanted = ("champion", "candidate_key", "action", "trigger", "reason", "as_of", "stage")
    return {
        f"{release.seq}": [str(getattr(release, name)) for name in wanted]
        for release in ledger.releases(settings.ledger, case)
    }


def _episodes(settings: Settings, case: str) -> dict[str, Any]:
    return {row["episode"]: row["as_of"] for row in ledger.episodes(settings.ledger, case)}


def executed(home: Path, airflow: Airflow) -> dict[str, Any]:
    """Who ran the tasks: tries that Airflow knows of, by queue.

    And the tasks that each queue's worker says it has ended.
    """
    tries = dict.fromkeys(full.QUEUES, 0)
    on_gpu = set()
    for run in airflow.runs():
        for task in airflow.tasks(run["dag_id"], run["dag_run_id"]):
            if task["pid"] is not None:  # a task that was skipped with its upstream never ran
                tries[task["queue"]] += task["try_number"]
                on_gpu |= {task["task_id"]} if task["queue"] == "gpu" else set()
    return {
        "tries_by_queue": tries,
        "ended_by_worker": {queue: worked(home, queue) for queue in full.QUEUES},
        "tasks_on_gpu_queue": sorted(on_gpu),
    }


def worked(home: Path, queue: str) -> int:
    """How many tasks the log of a queue's worker says to have succeeded."""
    return sum(
        "Task execute_workload" in line and " succeeded in " in line
        for line in (home / "logs" / f"worker-{queue}.log").read_text().splitlines()
    )


def databases(home: Path, ports: Ports) -> dict[str, int]:
    """Rows in PostgreSQL by database and table, each read as the database's own user."""
    wanted = {
        "ledger": ("releases", "verdicts", "drift_states", "drift_episodes", "alert_runs"),
        "airflow": ("dag_run", "task_instance", "celery_taskmeta"),
        "mlflow": ("runs", "metrics", "model_versions"),
    }
    counts: dict[str, int] = {}
    for name, tables in wanted.items():
        url = make_url(full.secret(home, f"{name}_db_url"))
        with psycopg.connect(
            host=HOST, port=ports.postgres, user=url.username, password=url.password, dbname=url.database
        ) as connection:
            for table in tables:
                [count] = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
                counts[f"{name}.{table}"] = count
    return counts
