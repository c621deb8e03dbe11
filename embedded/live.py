"""Set the live cases going: their DAGs follow today's clock, those of historical cases stay paused."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from embedded import probe, traffic
from embedded.airflow import FINISHED, Airflow
from pipelines import ledger
from pipelines.cases.surveying import survey
from pipelines.deploy.scheduler import KINDS
from pipelines.settings import Settings, read_settings

FIRST_CHAMPION_SECONDS = 180.0
CATCH_UP_SECONDS = 60.0


def open_live_cases(
    url: str,
    home: Path,
    say: Callable[[str], None],
    airflow: Airflow | None = None,
    settings: Settings | None = None,
    *,
    traffic_runs: bool = False,
) -> list[str]:
    """Unpause the DAGs of the live cases and pause all others; returns the live cases.

    A broken case has no DAGs: it is said. ``airflow`` is for a server with a login, ``settings`` for a ledger that is
    not in ``home``; ``traffic_runs`` if embedded/traffic.py was started beside it, with the same ``settings``.

    A live case without a champion trains one first: unpausing runs the schedule's last missed tick at once,
    and a drift run would have nothing to compare with yet. Where traffic has days to make up for, the drift run
    waits for them: it would find a window whose rows are still being sent.
    """
    client = airflow or Airflow(url)
    whole, live = _whole_and_live(settings or read_settings(home=home), say)
    client.wait_for_dags([f"{case}_{kind}" for case in whole for kind in KINDS])
    for case in whole:
        for kind in KINDS:
            client.pause(f"{case}_{kind}", paused=case not in live or kind == "drift")
    damaged = dict[str, str]()
    champions = {release.case for release in probe.champions(home, settings, damaged)}
    for case, problem in damaged.items():
        say(f"the case {case} is left alone: {problem}")
    live = [case for case in live if case not in damaged]
    for case in live:
        if case not in champions:
            say(f"training the first champion of {case}")
            if not _first_run_ended(client, f"{case}_training"):
                say(f"no first champion of {case} yet: look at {case}_training in Airflow")
                traffic_runs = False
        if traffic_runs and not _caught_up(settings or read_settings(home=home), case):
            say(f"the last days' rows of {case} are not all sent yet: its first drift run may see a part of them")
        client.unpause(f"{case}_drift")
    return live


def _whole_and_live(settings: Settings, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """The cases that have DAGs, and those of them that follow today's clock and are not retired."""
    found = survey()
    for one in found:
        if one.problem:
            say(f"the case {one.name} is broken and left alone: {one.problem}")
    whole = [case.name for case in found if not case.problem]
    for name in ledger.gone(settings.ledger, [case.name for case in found]):
        say(f"the folder of the case {name} is gone: nobody answers for it; see docs/runbooks.md#case-gone")
    retired = ledger.retired(settings.ledger).now
    for case in sorted(retired.keys() & set(whole)):
        say(f"the case {case} is left alone: {retired[case]}")
    begun = ledger.cases(settings.ledger)
    return whole, [case for case in traffic.live_cases(found, begun) if case not in retired]


def _caught_up(settings: Settings, case: str) -> bool:
    """Wait until traffic has sent what was due by this midnight, where the newest whole day ends; whether it has."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    while not traffic.caught_up(settings, case, midnight):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _first_run_ended(client: Airflow, dag: str) -> bool:
    """Wait for a run of ``dag`` to end; whether the newest one succeeded."""
    deadline = time.monotonic() + FIRST_CHAMPION_SECONDS
    while time.monotonic() < deadline:
        runs = client.runs(dag)
        if runs and runs[-1]["state"] in FINISHED:
            return bool(runs[-1]["state"] == "success")
        time.sleep(0.5)
    return False
