"""Sending notices exactly once, however many runs try: every attempt is claimed in the ledger before it is made.

Who claims first sends; what failed is tried again by the next run, up to ``MAX_ATTEMPTS`` times. A process that dies
between claim and answer leaves a claim that expires: only then may a receiver get a notice twice, as nobody knows
whether it did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from pipelines import ledger
from pipelines.alerts.lifecycle import takes
from pipelines.alerts.sinks import Sink, Undelivered
from pipelines.contracts import Notice, Severity
from pipelines.provenance import wall_time

LEASE = timedelta(minutes=2)
"""Wall time after which a claim without an answer is one of a dead process.

Several times what a sink's tries can take.
"""
MAX_ATTEMPTS = 5

log = logging.getLogger(__name__)


def deliver(
    url: str, case: str, fresh: Sequence[Notice], earlier: Sequence[Notice], sinks: Mapping[str, Sink], push: Severity
) -> None:
    """Send the notices of this run, and of ``earlier`` ones those that a sink has failed to take.

    The log takes all, other sinks those from severity ``push`` up. Whatever a sink does, nothing is raised: how it
    ended stands in the ledger.
    """
    history = _attempts(ledger.deliveries(url, case))
    known = {notice.id for notice in fresh}
    for notice in (*(notice for notice in earlier if notice.id not in known), *fresh):
        for name, sink in sinks.items():
            tried = history.get((notice.id, name), ())
            # A sink that was not configured when an old notice was new does not get it now.
            wanted = notice.id in known or bool(tried)
            if wanted and takes(name, notice.severity, push) and _due(tried):
                _attempt(url, case, notice, name, sink, len(tried) + 1)


def _attempt(url: str, case: str, notice: Notice, name: str, sink: Sink, attempt: int) -> None:
    note = partial(ledger.note_delivery, url, case=case, notice=notice.id, sink=name, attempt=attempt)
    if not note(event="claimed"):
        return
    try:
        sink(notice)
    except Undelivered as error:
        log.warning("%s: notice %s, attempt %d: %s", case, notice.id, attempt, error)
        note(event="failed", detail=str(error))
    except Exception as error:
        log.exception("%s: notice %s, attempt %d: the %s broke", case, notice.id, attempt, name)
        note(event="failed", detail=type(error).__name__)
    else:
        note(event="delivered")


def unfinished(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The notices that a sink was asked to take and has not taken (``rows``: the ledger's deliveries)."""
    taken = {(row["notice"], row["sink"]) for row in rows if row["event"] == "delivered"}
    return {notice for notice, sink in {(row["notice"], row["sink"]) for row in rows} - taken}


def settled(url: str, case: str, notice: str) -> bool:
    """Whether every sink that was asked has taken the notice, or is not asked again."""
    tries = [tried for (own, _), tried in _attempts(ledger.deliveries(url, case)).items() if own == notice]
    return all("delivered" in tried[-1] or (len(tried) >= MAX_ATTEMPTS and "failed" in tried[-1]) for tried in tries)


def _attempts(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """By notice and sink the attempts in order, each as ``{event: when}``."""
    found: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["notice"], row["sink"]), {}).setdefault(row["attempt"], {})[row["event"]] = row[
            "recorded_at"
        ]
    return {key: [attempts[number] for number in sorted(attempts)] for key, attempts in found.items()}


def _due(tried: Sequence[Mapping[str, str]]) -> bool:
    """Whether a notice is to be sent (again): never tried, or its last attempt failed or was left behind."""
    if not tried:
        return True
    last = tried[-1]
    if "delivered" in last or len(tried) >= MAX_ATTEMPTS:
        return False
    return "failed" in last or wall_time() - datetime.fromisoformat(last["claimed"]) > LEASE
