"""Set the live cases going: their DAGs follow today's clock, those of historical cases stay paused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from embedded import probe
from embedded.airflow import FINISHED, Airflow
from pipelines.config import Settings, case_names, load_params

KINDS = ("training", "drift", "rollback")
FIRST_CHAMPION_SECONDS = 180.0


def open_live_cases(url: str, home: Path, say: Callable[[str], None], airflow: Airflow | None = None, settings: Settings | None = None) -> list[str]:
    """Unpause the DAGs of the live cases and pause all others; returns the live cases.

    ``airflow`` is for a server with a login, ``settings`` for a ledger that is not in ``home``.

    A live case without a champion trains one first: unpausing runs the schedule's last missed tick at once,
    and a drift run would have nothing to compare with yet.
    """
    client = airflow or Airflow(url)
    live = [case for case in case_names() if load_params(case).schedule.live]
    client.wait_for_dags([f"{case}_{kind}" for case in case_names() for kind in KINDS])
    for case in case_names():
        for kind in KINDS:
            client.pause(f"{case}_{kind}", paused=case not in live or kind == "drift")
    champions = {release.case for release in probe.champions(home, settings)}
    for case in live:
        if case not in champions:
            say(f"training the first champion of {case}")
            if not _first_run_ended(client, f"{case}_training"):
                say(f"no first champion of {case} yet: look at {case}_training in Airflow")
        client.unpause(f"{case}_drift")
    return live


def _first_run_ended(client: Airflow, dag: str) -> bool:
    """Wait for a run of ``dag`` to end; whether the newest one succeeded."""
    deadline = time.monotonic() + FIRST_CHAMPION_SECONDS
    while time.monotonic() < deadline:
        runs = client.runs(dag)
        if runs and runs[-1]["state"] in FINISHED:
            return bool(runs[-1]["state"] == "success")
        time.sleep(0.5)
    return False
