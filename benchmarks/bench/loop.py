"""What Airflow adds to the loop: training runs as DAG runs against the same steps called in one process.

A stack of its own on free ports; a first champion, five weeks of `loans` rows and labels through the
gateway, then real runs (every step works) at one day after the other, Airflow and in process taking turns,
and at last no-op runs (every step finds its key) of the last day. `make bench-loop`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.record import goal, record, spread
from embedded import stack
from embedded.airflow import Airflow
from embedded.demo import traffic
from embedded.ports import Ports
from pipelines import cases
from pipelines.contracts import Window
from pipelines.errors import PerennialError
from pipelines.line import runner
from pipelines.line.order import TRAINING
from pipelines.line.step import Run, Step
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings

CASE = "loans"
FIRST = datetime(2020, 5, 1, tzinfo=UTC)
DAYS = 36
REAL_RUNS = 3
NOOP_RUNS = 9


def main() -> None:
    """Run the benchmark and write benchmarks/results/loop.json."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        extra = {"PERENNIAL_SCHEDULES": "0", "PERENNIAL_LOG_SEGMENT_SECONDS": "1", "PERENNIAL_CONNECTIONS": "none"}
        running = stack.start(Path(folder), Ports.free(), extra_env=extra)
        try:
            os.environ.update({name: value for name, value in running.env.items() if name.startswith("PERENNIAL_")})
            real, noop = measure(load_params(CASE), read_settings(), Airflow(read_settings().airflow_url))
        finally:
            stack.stop(Path(folder))
    middle = {name: spread(name, seconds)["median"] for runs in (real, noop) for name, seconds in runs.items()}
    overhead = (middle["no-op run, Airflow"] - middle["no-op run, one process"]) / len(TRAINING)
    goals = [
        goal("overhead per task, no-op run (s)", overhead, 0.3),
        goal(f"no-op run of {len(TRAINING)} tasks (s)", middle["no-op run, Airflow"], 3.0),
        goal(
            f"overhead of a real run of {len(TRAINING)} tasks (s)",
            middle["real run, Airflow"] - middle["real run, one process"],
            3.0,
        ),
    ]
    rows = [spread(name, seconds) for runs in (real, noop) for name, seconds in runs.items()]
    record(
        "loop",
        rows=rows,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("apache-airflow-core", "mlflow", "torch"),
    )


def measure(
    params: Params, settings: Settings, airflow: Airflow
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every run by name: the real ones and the no-op ones."""
    dag = f"{CASE}_training"
    airflow.wait_for_dags([dag])
    airflow.unpause(dag)
    in_airflow(airflow, dag, FIRST)
    send(params, settings)
    days = [FIRST + timedelta(days=DAYS - number) for number in range(2 * REAL_RUNS, -1, -1)]
    in_process(params, settings, days[0])  # the first one in this process pays for the imports
    real: dict[str, list[float]] = {"real run, Airflow": [], "real run, one process": []}
    for number, day in enumerate(days[1:]):
        if number % 2:
            real["real run, one process"].append(timed(partial(in_process, params, settings, day)))
        else:
            real["real run, Airflow"].append(timed(partial(in_airflow, airflow, dag, day)))
    noop: dict[str, list[float]] = {"no-op run, Airflow": [], "no-op run, one process": []}
    for _ in range(NOOP_RUNS):
        noop["no-op run, Airflow"].append(timed(lambda: in_airflow(airflow, dag, days[-1])))
        noop["no-op run, one process"].append(timed(lambda: in_process(params, settings, days[-1])))
    return real, noop


def timed(work: Callable[[], None]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_airflow(airflow: Airflow, dag: str, as_of: datetime) -> None:
    """One DAG run from the request to its end."""
    run = airflow.wait(dag, airflow.trigger_dag(dag, conf={"as_of": as_of.isoformat()}), interval=0.05)
    if run["state"] != "success":
        raise PerennialError(f"{dag} {run['dag_run_id']} ended as {run['state']}: no benchmark without a working loop")


def in_process(params: Params, settings: Settings, as_of: datetime) -> None:
    """The same steps, one after the other, here."""
    for step in TRAINING:
        if isinstance(step, Step):
            runner.run(step, Run(params, settings, as_of))
        else:
            runner.act(step, params, settings, {})


def send(params: Params, settings: Settings) -> None:
    """Rows and labels of the weeks after the first champion, through the gateway."""
    part = cases.part(CASE, "source")
    fields = cases.load_fields(CASE)
    tally = traffic.Tally()
    rows = part.rows(part.resolve(settings, params), Window(start=FIRST, end=FIRST + timedelta(days=DAYS)), params)
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        traffic.send_rows(gateway, fields, rows, tally)
        traffic.send_labels(gateway, fields, rows.drop_nulls(fields.label), tally)
    traffic.wait_for_closed_segments(settings.prediction_log, CASE)
    if tally.errors or not tally.rows_sent:
        raise PerennialError(f"{tally.errors} of {tally.requests} requests failed: look at the gateway's log")


if __name__ == "__main__":
    main()
