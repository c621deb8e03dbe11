"""retire: a case goes out of service by a person's word, and back into it. Nothing that it left is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pipelines import case_files, ledger
from pipelines.cases import load_fields
from pipelines.contracts import Retirement
from pipelines.deploy import repository, rollout, scheduler
from pipelines.errors import ConfigError, PerennialError
from pipelines.params_file import load_params
from pipelines.registry import aliases
from pipelines.settings import Settings

log = logging.getLogger(__name__)


def retire(settings: Settings, case: str, reason: str) -> dict[str, Any]:
    """Enter the retirement in the ledger, unload the case, take its aliases away and pause its DAGs.

    Gateways follow the ledger. Asked again, nothing is entered, and what follows is made so again. What is away is
    told (``behind``) and put in order by the next reconcile, or by asking again. ``changed``: it was not retired
    before. Raises ConfigError without a reason, or for a case that nobody knows.
    """
    _require(settings, case, reason, "the retirement of")
    with repository.alone(settings.model_repository, case):
        changed = ledger.set_retired(settings.ledger, case, retired=True, reason=reason, actor=settings.who)
    said = ledger.retirement(settings.ledger, case)
    follow = {
        "Triton": lambda: _unload(settings, case),
        "MLflow": lambda: aliases.project(settings, case),
        "Airflow": lambda: _pause(settings, case, paused=True),
    }
    return _answer(case, said, changed, follow)


def take_back(settings: Settings, case: str, reason: str) -> dict[str, Any]:
    """Let a retired case's champion serve again, once it answers in Triton; DAGs of a live case go on.

    Of a case that is not retired, nothing is changed. Raises ConfigError without a reason or if the case's folder
    cannot be used, Unavailable if Triton is down: then nothing is changed.
    """
    _require(settings, case, reason, "taking back")
    if ledger.retirement(settings.ledger, case) is None:
        return _answer(case, None, changed=False, follow={})
    fields, params = load_fields(case), load_params(case)
    with repository.alone(settings.model_repository, case):
        loaded = rollout.restore(settings, fields, params.serving, retired=False)
        changed = ledger.set_retired(settings.ledger, case, retired=False, reason=reason, actor=settings.who)
    follow: dict[str, Callable[[], list[str]]] = {"MLflow": lambda: aliases.project(settings, case)}
    if params.schedule.live:  # `up` leaves those of a case that is history paused, too
        follow["Airflow"] = lambda: _pause(settings, case, paused=False)
    return _answer(case, ledger.retirement(settings.ledger, case), changed, follow, loaded)


def _require(settings: Settings, case: str, reason: str, what: str) -> None:
    if not reason.strip():
        raise ConfigError(f"{what} {case} needs a reason, it is kept in the ledger: --reason '...'")
    known = sorted({*case_files.case_names(), *ledger.cases(settings.ledger)})
    if case not in known:
        raise ConfigError(f"unknown case {case!r}: choose one of {', '.join(known)}")


def _unload(settings: Settings, case: str) -> list[str]:
    with repository.alone(settings.model_repository, case):
        return rollout.clear(settings, case)


def _pause(settings: Settings, case: str, *, paused: bool) -> list[str]:
    client = scheduler.client(settings)
    there = {dag["dag_id"] for dag in client.dags()}
    dags = [dag for kind in scheduler.KINDS if (dag := f"{case}_{kind}") in there]
    for dag in dags:
        client.pause(dag, paused=paused)
    return [f"{dag} {'is paused' if paused else 'goes on'}" for dag in dags]


def _answer(
    case: str,
    said: Retirement | None,
    changed: bool,
    follow: dict[str, Callable[[], list[str]]],
    done: list[str] | None = None,
) -> dict[str, Any]:
    """What was done; what hangs on it is done now, as far as its services answer."""
    done, behind = list(done or ()), list[str]()
    for service, act in follow.items():
        try:
            done += act()
        except PerennialError as error:
            behind.append(f"{service}: {error}")
            log.warning("%s: %s does not follow yet: %s", case, service, error)
    row = None if said is None else said.model_dump(mode="json", include={"reason", "actor", "recorded_at"})
    return {"case": case, "retired": row, "changed": changed, "done": done, "behind": behind}
