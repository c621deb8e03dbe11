"""`python -m embedded.airflow_metrics`: what Prometheus may know of Airflow, asked over its REST API v2.

The same process in compose and beside `make up PROFILE=full`. It needs a login that may read (viewer) and
nothing else: no database, no plugin, no StatsD. Everything is a gauge made anew when somebody asks, at most once in
``KEEP_SECONDS``; what a finished run's tasks took is asked once per run.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from embedded.airflow import FINISHED, Airflow, client
from pipelines.errors import PerennialError
from pipelines.moments import parse_moment
from pipelines.reports import exporter
from pipelines.reports.exporter import Sample
from pipelines.settings import read_settings

PREFIX = "perennial_airflow_"
SERIES = {
    "up": "1 if Airflow's REST API answered all that was asked",
    "collect_seconds": "what asking took",
    "component_healthy": "1 if metadatabase, scheduler, dag_processor or triggerer says that it is healthy",
    "component_heartbeat_timestamp_seconds": "when the component was last heard of",
    "import_errors": "DAG files that do not load",
    "dag_paused": "1 while the DAG is paused",
    "dag_runs": "runs that Airflow remembers, by state",
    "dag_run_seconds": "duration of the newest finished run",
    "dag_run_failed": "1 if the newest finished run failed",
    "dag_run_ended_timestamp_seconds": "end of the newest finished run",
    "dag_running_seconds": "how long the oldest running run has been running",
    "task_seconds": "duration of each task in the newest finished run",
    "task_tries": "tries of each task in the newest finished run",
    "task_failed": "1 if the task failed in the newest finished run",
    "tasks": "task instances now, by state",
    "queued_tasks": "task instances that wait for a worker, by queue",
    "pool_slots": "slots of a pool, by what they do",
}
"""Every series by its name behind the prefix."""
TASK_STATES = ("running", "queued", "scheduled", "deferred", "up_for_retry", "failed", "success")
POOL_STATES = ("open", "running", "queued", "scheduled", "deferred")
KEEP_SECONDS = 10.0


class Watch:
    """Asks one Airflow, and remembers what cannot change any more."""

    def __init__(
        self, airflow: Airflow, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._airflow = airflow
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._finished: dict[str, tuple[str, list[Sample]]] = {}
        self._text = b""
        self._made = -KEEP_SECONDS

    def text(self) -> bytes:
        """All series in Prometheus' text format, at most ``KEEP_SECONDS`` old.

        ``up`` is 0 if Airflow did not answer.
        """
        with self._lock:
            began = self._clock()
            if began - self._made >= KEEP_SECONDS:
                try:
                    found = [*self._samples(), ("up", {}, 1.0)]
                except PerennialError as error:
                    print(error, file=sys.stderr, flush=True)
                    found = [("up", {}, 0.0)]
                self._made = self._clock()
                self._text = exporter.exposition(PREFIX, SERIES, [*found, ("collect_seconds", {}, self._made - began)])
            return self._text

    def _samples(self) -> Iterator[Sample]:
        yield from _health(self._airflow.call("GET", "/monitor/health"))
        yield "import_errors", {}, self._airflow.call("GET", "/importErrors", params={"limit": 1})["total_entries"]
        dags = {dag["dag_id"]: dag for dag in self._airflow.dags()}
        for name, dag in dags.items():
            yield "dag_paused", {"dag": name}, dag["is_paused"]
        for dag in self._airflow.call("GET", "/dagStats", params={"dag_ids": sorted(dags)})["dags"] if dags else ():
            for state in dag["stats"]:
                yield "dag_runs", {"dag": dag["dag_id"], "state": state["state"]}, state["count"]
        for name in dags:
            yield from self._newest(name)
        yield from self._running()
        yield from self._tasks()
        for pool in self._airflow.call("GET", "/pools")["pools"]:
            for state in POOL_STATES:
                yield "pool_slots", {"pool": pool["name"], "state": state}, pool[f"{state}_slots"]

    def _newest(self, dag: str) -> list[Sample]:
        """What the newest finished run took; its tasks are asked for once."""
        runs = self._airflow.call(
            "GET", f"/dags/{dag}/dagRuns", params={"limit": 1, "order_by": "-end_date", "state": list(FINISHED)}
        )["dag_runs"]
        if not runs or not runs[0]["end_date"]:
            return []
        run = runs[0]
        key = f"{runs[0]['dag_run_id']} {runs[0]['end_date']}"
        if self._finished.get(dag, ("",))[0] != key:
            label = {"dag": dag}
            found: list[Sample] = [
                ("dag_run_seconds", label, _seconds(run["end_date"]) - _seconds(run["start_date"] or run["end_date"])),
                ("dag_run_failed", label, run["state"] == "failed"),
                ("dag_run_ended_timestamp_seconds", label, _seconds(run["end_date"])),
            ]
            for task in self._airflow.tasks(dag, run["dag_run_id"]):
                if task["state"] in FINISHED and task.get("map_index", -1) == -1:
                    place = {"dag": dag, "task": task["task_id"]}
                    found += [
                        ("task_seconds", place, task["duration"] or 0.0),
                        ("task_tries", place, task["try_number"]),
                    ]
                    found.append(("task_failed", place, task["state"] == "failed"))
            self._finished[dag] = (key, found)
        return self._finished[dag][1]

    def _running(self) -> Iterator[Sample]:
        oldest: dict[str, float] = {}
        for run in self._airflow.runs(state=["running"]):
            if run["start_date"]:
                oldest[run["dag_id"]] = min(oldest.get(run["dag_id"], float("inf")), _seconds(run["start_date"]))
        for dag, start in oldest.items():
            yield "dag_running_seconds", {"dag": dag}, max(0.0, self._now() - start)

    def _tasks(self) -> Iterator[Sample]:
        everywhere = "/dags/~/dagRuns/~/taskInstances"
        for state in TASK_STATES:
            yield (
                "tasks",
                {"state": state},
                self._airflow.call("GET", everywhere, params={"state": [state], "limit": 1})["total_entries"],
            )
        waiting = self._airflow.call("GET", everywhere, params={"state": ["queued"], "limit": 100})["task_instances"]
        queues = Counter(task["queue"] or "default" for task in waiting)
        for queue in {"default", "gpu", *queues}:
            yield "queued_tasks", {"queue": queue}, queues[queue]


def _health(answer: dict[str, Any]) -> Iterator[Sample]:
    for name in ("metadatabase", "scheduler", "dag_processor", "triggerer"):
        found = answer.get(name) or {}
        yield "component_healthy", {"component": name}, found.get("status") == "healthy"
        if moment := found.get(f"latest_{name}_heartbeat"):
            yield "component_heartbeat_timestamp_seconds", {"component": name}, _seconds(moment)


def _seconds(text: str) -> float:
    return parse_moment(text).timestamp()


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is ended; 2 if the settings cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m embedded.airflow_metrics", description="export Airflow's state to Prometheus"
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, default=9112, help="the port (9112)")
    given = parser.parse_args(arguments)
    try:
        watch = Watch(client(read_settings()))
    except PerennialError as error:
        print(f"airflow_metrics: {error}", file=sys.stderr)
        return error.exit_code
    exporter.serve(watch.text, given.host, given.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
