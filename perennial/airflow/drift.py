"""Drift: what went through the gateway, against what the champion was trained on; confirmed drift trains once."""

from datetime import timedelta

from airflow.sdk import DAG, TriggerRule, XComArg, chain

from perennial.airflow.deadlines import DRIFT as WITHIN
from perennial.airflow.deadlines import deadline
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator, task_of
from perennial.airflow.run import DEFAULTS, clock_param, timetable
from perennial.airflow.trigger import TriggerOnce
from pipelines.line.order import DRIFT, HEADROOM, PROFILE, RECONCILE, TELLING
from pipelines.params import Params

ABOUT = """
The window of **{case}** that ends at `as_of`: logged predictions are profiled and compared with the champion's
reference, arrived labels are watched, a probe measures what a retraining would gain, and a state machine decides.
`retrain` starts `{case}_training` under the episode's name, so that one episode trains once, however often this run is
repeated; without an episode it is skipped, and the run stays green. `alert` tells people, once, what was found; a red
one has stopped nothing, and neither has a red `headroom`.
"""
EPISODE = f"(ti.xcom_pull(task_ids='{DRIFT.name}', key='{DRIFT.event}') or {{}}).get('episode')"


def drift(params: Params) -> DAG:
    """The drift DAG of one case."""
    with DAG(
        dag_id=f"{params.case}_drift",
        description=f"Watch the traffic of {params.case} and ask for training when it has drifted",
        doc_md=ABOUT.format(case=params.case),
        schedule=timetable(params.schedule.drift),
        start_date=params.period[0],
        catchup=False,
        params={"as_of": clock_param(params)},
        default_args=DEFAULTS,
        deadline=deadline(params.case, WITHIN),
        on_failure_callback=tell_failure(params.case),
        tags=["perennial", params.case, "drift"],
    ) as dag:
        # With a task for every day that has rows `profile` merges what they made.
        profile = task_of(PROFILE, params.case, in_parts=params.drift.mapped, each="day")
        # A probe takes seconds. Whatever becomes of it, a window that was profiled is judged.
        headroom = StepOperator(
            task_id=HEADROOM.name, step=HEADROOM, case=params.case, execution_timeout=timedelta(minutes=10)
        )
        judge = StepOperator(
            task_id=DRIFT.name, step=DRIFT, case=params.case, trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS
        )
        retrain = TriggerOnce(
            task_id="retrain",
            case=params.case,
            trigger_dag_id=f"{params.case}_training",
            trigger_run_id=f"drift__{{{{ {EPISODE} }}}}",
            conf=XComArg(judge, key=DRIFT.event),
            note=f"{{{{ (ti.xcom_pull(task_ids='{DRIFT.name}') or {{}}).get('reason') }}}}",
        )
        # A skipped retrain is the usual day, not a reason to leave the projections unrepaired.
        reconcile = StepOperator(
            task_id=RECONCILE.name, step=RECONCILE, case=params.case, trigger_rule=TriggerRule.NONE_FAILED
        )
        # Beside the event, never before it: what tells people may break and turn red, and the loop goes on.
        telling = [StepOperator(task_id=step.name, step=step, case=params.case) for step in TELLING]
        chain(profile, headroom, judge, retrain, reconcile)
        chain(profile, judge)
        chain(judge, *telling)
    return dag
