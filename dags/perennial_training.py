"""Training: ingest to rollout, on the case's schedule, by hand, or because a drift run asked for it."""

from airflow.sdk import DAG, chain
from perennial_deadlines import deadline
from perennial_deadlines import training as training_deadline
from perennial_failures import tell_failure
from perennial_operators import StepOperator, task_of
from perennial_run import DEFAULTS, clock_param, readable_cases, reason_param, timetable, train_arguments, trigger_param
from perennial_torchrun import TorchrunOperator

from pipelines.line.order import INGEST, TRAIN, TRAINING
from pipelines.line.step import Action, Step
from pipelines.params import Params

ABOUT = """
One candidate for **{case}**: rows up to `as_of` are checked, split, trained on, exported, judged and, if the
gate promotes, released. A candidate that is not promoted is a verdict, not a failure: the run stays green.

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
        chain(*[_task(step, params) for step in TRAINING])
    return dag


for found in readable_cases()[0]:
    globals()[f"{found.case}_training"] = training(found)
