"""Training: ingest to rollout, on the case's schedule, by hand, or because a drift run asked for it."""

from airflow.sdk import DAG, chain

from perennial.airflow.deadlines import deadline
from perennial.airflow.deadlines import training as training_deadline
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator, task_of
from perennial.airflow.rollout import trial
from perennial.airflow.run import DEFAULTS, clock_param, reason_param, timetable, train_arguments, trigger_param
from perennial.airflow.torchrun import TorchrunOperator
from pipelines.line.order import INGEST, ROLLOUT, TRAIN, TRAINING
from pipelines.line.step import Action, Step
from pipelines.params import Params

ABOUT = """
One candidate for **{case}**: rows up to `as_of` are checked, split, trained on, exported, judged and, if the
gate promotes, released. A candidate that is not promoted is a verdict, not a failure: the run stays green.

Where it is released in stages, `trial` starts a run of `{case}_rollout` for it; else `trial` is skipped.

Running the same `as_of` again changes nothing. Red means broken: read the task's last error, it says what to do.
"""


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
        tasks = [_task(step, params) for step in TRAINING]
        chain(*tasks)
        tasks[TRAINING.index(ROLLOUT)] >> trial(params, tasks[TRAINING.index(ROLLOUT)])
    return dag
