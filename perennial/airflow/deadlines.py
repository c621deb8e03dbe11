"""Deadlines: people are told of a run that is not over in time.

The triggerer tells them: when a run is late, the workers may be what hangs.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference  # type: ignore[attr-defined] # its stub lacks them

from perennial.airflow.run import train_arguments
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import read_settings

DRIFT = timedelta(hours=1)
"""A drift run takes seconds, of a large window minutes, and the next one may be due in an hour."""
EXPERIMENT = timedelta(days=45)
"""What an experiment may take before people are told of it; twice, as another candidate may have one before it."""
ROLLBACK = timedelta(minutes=10)
"""Somebody waits for it; it takes seconds."""


def training(params: Params) -> timedelta:
    """What the train task may take at most (it is ended then) and an hour for everything around it."""
    limit: timedelta = train_arguments(params)["execution_timeout"]
    return limit + timedelta(hours=1)


def rollout(params: Params) -> timedelta:
    """When every stage is stuck by then, and so much that another candidate's rollout may take before it.

    An experiment lasts as long as it needs: people are told after a quarter of a year.
    """
    plan = params.rollout
    shadow = 0.0 if plan.shadow is None else 60 * (plan.shadow.hours or 0.0)
    waits = [shadow, *(plan.held(step).minutes for step in range(len(plan.steps) - 1)), plan.soak_minutes]
    asks = timedelta() if plan.experiment is None else EXPERIMENT
    return 2 * asks + 2 * sum((5 * timedelta(minutes=minutes) + timedelta(days=1) for minutes in waits), timedelta())


def deadline(case: str, within: timedelta) -> DeadlineAlert:
    """A deadline ``within`` which a run of the case has to end.

    It is counted from when the run was queued: one that cannot start is late too.
    """
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, within, AsyncCallback(late, {"case": case}), name="late")


async def late(case: str, context: dict[str, Any]) -> str:
    """Tell people of a run that missed its deadline; raises Undelivered if a sink did not take it.

    Airflow keeps the answer. Of a run that has failed before people know already (failures.py).
    """
    if context["dag_run"].get("state") == "failed":
        return "told nobody: the run has failed, and that was told when it did"
    run = context["dag_run"]
    due = context["deadline"]["deadline_time"]
    if not isinstance(due, datetime):
        due = datetime.fromisoformat(due)
    return await asyncio.to_thread(_tell, case, run["dag_id"], run["dag_run_id"], due)


def _tell(case: str, dag: str, run: str, due: datetime) -> str:
    from pipelines.alerts import runs

    params = load_params(case)
    settings = read_settings()
    return f"told {', '.join(runs.tell(params, settings, runs.late(params, settings.runbooks, dag, run, due)))}"
