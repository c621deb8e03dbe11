"""Rollout: what moves a candidate's rollout in stages, tick by tick, until it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseSensorOperator, Param, PokeReturnValue, XComArg

from perennial.airflow.deadlines import deadline
from perennial.airflow.deadlines import rollout as rollout_deadline
from perennial.airflow.failures import keeping_errors, tell_failure
from perennial.airflow.operators import StepOperator, task_settings
from perennial.airflow.run import DEFAULTS, failing_fast, small
from perennial.airflow.trigger import TriggerOnce
from pipelines.cases import load_case
from pipelines.line import runner
from pipelines.line.order import ROLLOUT, TICK
from pipelines.moments import parse_as_of
from pipelines.params import Params

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

ABOUT = """
Moves the rollout of **{case}** on: every tick reads the ledger's newest row, looks at what both versions did since the
rollout was opened, asks the guard, and writes at most one row. `{case}_training` starts one run for each candidate
whose rollout it opened, or that waits for its turn; `as_of` is that training's. Between two ticks no worker is held.

A run ends green when its candidate serves, was taken back, or is stale. By hand:
`python -m pipelines rollout status|advance|hold|resume|abort --case {case}`.
"""
OF = "The training run whose candidate this is about (UTC). Empty: whatever rollout is under way, until it is over."
LONGEST = timedelta(days=400)
"""A rollout whose stages last a year each is still one."""
AT_ONCE = 64
"""Runs of candidates that wait: each tick moves whatever rollout is under way, so that none blocks another."""


def rollout(params: Params) -> DAG:
    """The rollout DAG of one case."""
    with DAG(
        dag_id=f"{params.case}_rollout",
        description=f"Move a candidate of {params.case} from stage to stage, or take it back",
        doc_md=ABOUT.format(case=params.case),
        schedule=None,
        catchup=False,
        max_active_runs=AT_ONCE,
        params={"as_of": Param(None, OF, type=["null", "string"], format="date-time")},
        default_args={**DEFAULTS, "retries": 12, "max_retry_delay": timedelta(minutes=5)},
        deadline=deadline(params.case, rollout_deadline(params)),
        on_failure_callback=tell_failure(params.case),
        tags=["perennial", params.case, "rollout"],
    ) as dag:
        RolloutSensor(task_id=TICK.name, case=params.case, poke_interval=pause(params), timeout=LONGEST)
    return dag


def trial(params: Params, rollout: StepOperator) -> TriggerOnce:
    """The task that starts the run of a candidate, whose rollout the task ``rollout`` opened, or that waits; once."""
    key = f"((ti.xcom_pull(task_ids='{ROLLOUT.name}', key='{ROLLOUT.event}') or {{}}).get('candidate') or '')[:16]"
    return TriggerOnce(
        task_id=ROLLOUT.event,
        case=params.case,
        trigger_dag_id=f"{params.case}_rollout",
        trigger_run_id=f"candidate__{{{{ {key} }}}}",
        conf=XComArg(rollout, key=ROLLOUT.event),
    )


def pause(params: Params) -> timedelta:
    """The time between two ticks: a window of the guard, and a minute at most."""
    guard = params.rollout.guard
    minutes = 1.0 if guard is None else min(1.0, guard.window_minutes)
    return timedelta(seconds=max(2.0, 60 * minutes))


class RolloutSensor(BaseSensorOperator):
    """Ticks a case's rollout until nothing more can become of the candidate of the training run ``as_of``.

    Without an ``as_of`` until no rollout is under way.

    What a retry can mend (Triton, the ledger are away) is tried again for about an hour, over the whole rollout.
    """

    ui_color = "#e8f3ec"

    def __init__(self, *, case: str, **arguments: Any) -> None:
        super().__init__(mode="reschedule", **arguments)
        self.case = case

    def poke(self, context: Context) -> PokeReturnValue:
        """One tick; what it came to is the task's XCom when it is the last one."""
        with keeping_errors(context), failing_fast():
            params, settings = load_case(self.case).params, task_settings(TICK, self.case)
            assert params is not None  # load_case raises what is wrong with them
            given = context["params"].get("as_of")
            found = runner.act(TICK, params, settings, {"as_of": parse_as_of(given) if given else None})
            self.log.info("%s: %s: %s", self.case, found.outcome, found.reason)
            return PokeReturnValue(is_done=found.over, xcom_value=small(found.model_dump(mode="json")))
