"""`make test-full`: the loop on PROFILE=full, against the embedded one and against what may go wrong.

python -m benchmarks.full.stack [--home DIR]

The FAST demo is played on the embedded stack and then on PROFILE=full, with one set of parameters whose training goes
to the `gpu` queue. What stays running is looked at: the same keys, files and verdicts on both; rows in all three
databases; tasks that ran in Celery's workers; a worker that is killed in mid training; twenty drift runs of one episode
at once; two gateway workers that share a limit; every target, rule and panel of the monitoring. Writes
benchmarks/results/full-stack.json and draws docs/img/dashboard-*.png.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.full import demo as full_demo
from benchmarks.full import faults as full_faults
from benchmarks.full import watch as full_watch
from benchmarks.record import goal, record
from embedded import stack
from embedded.airflow import client
from embedded.services import full_environment, settings_of
from pipelines.case_files import CASES_ROOT
from pipelines.settings import read_settings

CASES = ("bank", "loans")
"""The cases that the demo chooses from."""
AS_OF = datetime(2026, 11, 1, tzinfo=UTC)
QUEUE = {"resources": {"queue": "gpu"}}
PROMISED = {"serving": {"device": "cpu", "slo": {"p95_ms": 500.0, "p99_ms": 2000.0}}}
LONG = {"epochs": 60, "checkpoint_every": 20, "ranks": 2}
"""A training that lasts long enough to be killed in its middle."""
PACKAGES = (
    "apache-airflow-core",
    "apache-airflow-providers-celery",
    "celery",
    "redis",
    "psycopg",
    "sqlalchemy",
    "mlflow",
    "torch",
)


def main() -> int:
    """Run it all; 0 if every goal holds."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full.stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, default=None, help="folder of both states (default: a new one below /tmp)")
    root = (parser.parse_args().home or Path(tempfile.mkdtemp(prefix="perennial-full-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o711)  # PostgreSQL's user passes through
    os.environ |= {"PERENNIAL_PARAMS_DIR": str(root / "params"), "PERENNIAL_SCHEDULES": "0"}
    began = time.monotonic()
    for case in CASES:
        write_params(root / "params", case, {})
    plain = root / "embedded"
    home = root / "full"
    before = full_demo.play(plain, "embedded")
    try:
        after = full_demo.play(home, "full")
        facts = look(plain, home, str(after["case"]), root / "params")
    finally:
        left = stack.stop(home)
    facts["demo"] |= {
        name: {"embedded": before[name], "full": after[name]}
        for name in ("seconds", "rows_logged", "drift_runs", "verdicts", "errors")
    }
    facts |= {"files_not_compared": full_demo.PROVENANCE, "processes_left": left}
    print(f"stopped, {left} processes left", flush=True)
    goals = judge(facts)
    rows = [
        {"name": name, **{key: found[key] for key in ("count", "equal")}}
        for name, found in facts["demo"]["same"].items()
    ]
    record(
        "full-stack",
        rows=rows,
        goals=goals,
        seconds=time.monotonic() - began,
        packages=PACKAGES,
        more={"servers": full_watch.servers(), **facts},
    )
    if all(one["holds"] for one in goals):
        return 0
    return 1


def look(plain: Path, home: Path, case: str, params: Path) -> dict[str, Any]:
    """Everything that is asked of the running stack, in the order in which one thing needs another."""
    found = stack.read(home)
    assert found is not None
    settings = settings_of(home, full_environment(home, found.ports, profile="full"))
    airflow = client(settings)
    facts: dict[str, Any] = {
        "demo": {
            "case": case,
            "same": full_demo.compared(
                full_demo.taken(read_settings(home=plain), case), full_demo.taken(settings, case)
            ),
        }
    }
    facts["demo"]["tasks"] = full_demo.executed(home, airflow)
    write_params(params, "loans", LONG)
    facts["killed"] = full_faults.killed(settings, airflow, AS_OF)
    write_params(params, "loans", {})
    facts["twenty_drift_runs"] = full_faults.twenty(settings, airflow, AS_OF)
    facts["shared_limit"] = full_faults.limited(home, found.ports)
    facts["prometheus"] = full_watch.watched(settings, found.ports, case)
    facts["postgresql_rows"] = full_demo.databases(home, found.ports)
    return facts


def write_params(folder: Path, case: str, train: dict[str, Any]) -> None:
    """The case's parameters with its training on the GPU queue, and something that is promised of its answers."""
    own = yaml.safe_load((CASES_ROOT / case / "params.yaml").read_text())
    folder.mkdir(exist_ok=True)
    (folder / f"{case}.yaml").write_text(
        yaml.safe_dump({**own, **QUEUE, **PROMISED, "train": {**own["train"], **train}})
    )


def judge(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold."""
    tasks = facts["demo"]["tasks"]
    killed = facts["killed"]
    twenty = facts["twenty_drift_runs"]
    watched = facts["prometheus"]
    strays = sum(abs(count - tasks["ended_by_worker"][queue]) for queue, count in tasks["tries_by_queue"].items())
    return [
        *(
            goal(f"{name} of the demo that differ from the embedded stack's", len(found["differ"]), 0)
            for name, found in facts["demo"]["same"].items()
        ),
        goal("tasks of the demo that no worker of their queue ended", strays, 0),
        exactly("kinds of tasks on the gpu queue: train alone", len(tasks["tasks_on_gpu_queue"]), 1),
        goal("tables in PostgreSQL without a row", sum(not count for count in facts["postgresql_rows"].values()), 0),
        goal(
            "seconds until nothing of the killed worker lived", killed["gone_after_seconds"], full_faults.GONE_SECONDS
        ),
        goal("processes of the killed worker that are left", len(killed["left"]), 0),
        goal("step at which the retry went on", killed["resumed_from_step"] or 0, 1, "higher"),
        exactly("MLflow runs of the killed candidate", killed["mlflow_runs"], 1),
        exactly("training runs of twenty drift runs at once", len(twenty["training_runs"]), 1),
        goal("drift runs at once that ended green", twenty["states"].get("success", 0), full_faults.RUNS, "higher"),
        exactly("verdicts on that episode's training", twenty["verdicts"], 1),
        goal(
            f"requests that two workers let in at {full_faults.RATE} a day",
            facts["shared_limit"]["let_in"],
            full_faults.RATE,
        )
        | {"holds": facts["shared_limit"]["let_in"] == full_faults.RATE},
        goal("targets of Prometheus that are down", len(watched["down"]), 0),
        goal("rules that were not evaluated without an error", len(watched["rules_not_ok"]), 0),
        goal("queries of panels that find nothing, without a reason", len(watched["panels"]["empty"]), 0),
        goal("processes left after the stop", facts["processes_left"], 0),
    ]


def exactly(name: str, count: int, wanted: int) -> dict[str, Any]:
    """A goal that neither more nor less reaches."""
    return goal(name, count, wanted) | {"holds": count == wanted}


if __name__ == "__main__":
    sys.exit(main())
