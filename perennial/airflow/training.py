"""Training: ingest to rollout, on the case's schedule, by hand, or because a drift run asked for it."""

from airflow.sdk import DAG, XComArg, chain

from perennial.airflow.deadlines import deadline
from perennial.airflow.deadlines import training as training_deadline
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator, task_of
from perennial.airflow.run import DEFAULTS, clock_param, reason_param, timetable, train_arguments, trigger_param
from perennial.airflow.torchrun import TorchrunOperator
from perennial.airflow.trigger import TriggerOnce
from pipelines.line.order import INGEST, ROLLOUT, TRAIN, TRAINING
from pipelines.line.step import Action, Step
from pipelines.params import Params

ABOUT = """
One candidate for **{case}**: rows up to `as_of` are checked, split, trained on, exported, judged and, if the
gate promotes, released. A candidate that is not promoted is a verdict, not a failure: the run stays green.

Where the case declares a rollout in stages, `rollout` opens it, and `trial` starts `{case}_rollout`, one run for each
candidate, which moves it; this run ends. Else `trial` is skipped.

Running the same `as_of` again changes nothing. Red means broken: read the task's last error, it says what to do.
"""

CANDIDATE = f"((ti.xcom_pull(task_ids='{ROLLOUT.name}', key='{ROLLOUT.event}') or {{}}).get('candidate') or '')[:16]"


def _task(step: Step | Action, params: Params) -> StepOperator:
    if step is TRAIN:
        return TorchrunOperator(task_id=step.name, case=params.case, **train_arguments(params))
    return task_of(step, params.case, in_parts=step is INGEST and params.dataset.mapped_days is not None)


def training(params: Params) -> DAG:
    """The training DAG of one case."""
    with DAG(
        dag_id=f"{params.case}_training",
        description=f"Train, judge and release a candidate for {params.case}",
        doc_md=ABOUT.format(case=params.case),
        schedule=timetable(params.schedule.training),
        start_date=params.period[0],
        catchup=False,
        max_active_runs=1,
        params={"as_of": clock_param(params), "trigger": trigger_param(), "reason": reason_param()},
        default_args=DEFAULTS,
        deadline=deadline(params.case, training_deadline(params)),
        on_failure_callback=tell_failure(params.case),
        tags=["perennial", params.case, "training"],
    ) as dag:
        tasks = {step.name: _task(step, params) for step in TRAINING}
        chain(*tasks.values())
        tasks[ROLLOUT.name] >> TriggerOnce(
            task_id=ROLLOUT.event,
            case=params.case,
            trigger_dag_id=f"{params.case}_rollout",
            trigger_run_id=f"candidate__{{{{ {CANDIDATE} }}}}",
            conf=XComArg(tasks[ROLLOUT.name], key=ROLLOUT.event),
        )
    return dag
