"""A DAG run that is started once by its name: the event that closes the loop, and for anybody's DAG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator  # noqa: TID253 - the class below extends it
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException

from perennial.airflow.failures import keeping_errors
from perennial.airflow.hooks import ledger_of_task
from perennial.airflow.links import Link, run_page
from perennial.airflow.run import failing_fast

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

NOBODYS = "airflow"
"""The ledger's chain of rows for starts that belong to no case."""


class TriggerOnce(TriggerDagRunOperator):
    """Starts a DAG run under a name that is its identity: however often it is asked, there is one run.

    Without a ``conf`` there is nothing to start, and the task is skipped. A run of that name that is there already is a
    skip too, also if it was this very task's own first request whose answer was lost. Of those who ask at once, Airflow
    takes the first one.

    Airflow forgets runs that somebody deletes or cleans out of its database. Where there is a ledger (the connection
    ``ledger_default``, ``PERENNIAL_LEDGER_URL`` or the state folder's file), the run is noted there as soon as Airflow
    has it, and what is noted is not started again. A ledger that does not answer fails the task before anything is
    started, so that it is tried again. ``case`` is whose run it is in the ledger; a DAG of anybody's needs none.
    """

    template_fields: Sequence[str] = (*TriggerDagRunOperator.template_fields, "note")
    # Airflow's own button leads to a run named None when there was nothing to start.
    operator_extra_links = [Link("Triggered DAG")]  # noqa: RUF012 - a list to Airflow

    def __init__(self, *, trigger_run_id: str, conf: Any, case: str = NOBODYS, **arguments: Any) -> None:
        if refused := {"reset_dag_run", "wait_for_completion"} & arguments.keys():
            raise ValueError(
                f"TriggerOnce takes no {' and no '.join(sorted(refused))}: a run is started once, and nobody waits for "
                "it; wait with an ExternalTaskSensor, start again with a TriggerDagRunOperator"
            )
        # No logical date: it would be unique per DAG too, and two reasons to train may fall on one moment.
        super().__init__(
            trigger_run_id=trigger_run_id, conf=conf, logical_date=None, skip_when_already_exists=True, **arguments
        )
        self.case = case

    def execute(self, context: Context) -> None:
        """Ask for the run; its name and page are noted first, because Airflow forgets them when the run exists."""
        if not self.conf:
            raise AirflowSkipException("nothing to start: the step before did not ask for it")
        run = str(self.trigger_run_id)
        self.links = {"Triggered DAG": run_page(self.trigger_dag_id, run)}
        context["ti"].xcom_push(key="trigger_run_id", value=run)
        with keeping_errors(context), failing_fast():
            ledger_url = ledger_of_task()
            if ledger_url is not None:
                self._once(context, ledger_url, run)
                return
        super().execute(context)

    def _once(self, context: Context, ledger_url: str, run: str) -> None:
        from pipelines import ledger

        about = context["ti"]
        name = (self.case, self.trigger_dag_id, run)
        known = ledger.started(ledger_url, *name)
        if known is not None:
            raise AirflowSkipException(
                f"run {run} of {self.trigger_dag_id} was started before: the ledger has it since "
                f"{known.recorded_at.isoformat(timespec='seconds')}, from {known.asked_by}"
            )
        made = False
        try:
            super().execute(context)
        except DagRunTriggerException as wanted:
            made = _made(wanted)
        # After Airflow has it: a row that came first would be all that is left of a start that never was.
        ledger.note_start(ledger_url, *name, f"{about.dag_id}/{about.run_id}/{about.task_id}#{about.try_number}")
        if not made:
            raise AirflowSkipException(f"run {run} of {self.trigger_dag_id} is there already")


def _made(wanted: DagRunTriggerException) -> bool:
    """Let Airflow make the run; False if there is one of its name. What else is wrong is raised.

    Airflow's task runner does the same with the exception, and then ends the task: nothing could be noted after it.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

    answer = task_runner.SUPERVISOR_COMMS.send(
        TriggerDagRun(
            dag_id=wanted.trigger_dag_id,
            run_id=wanted.dag_run_id,
            logical_date=wanted.logical_date,
            run_after=wanted.run_after,
            conf=wanted.conf,
            note=wanted.note,
        )
    )
    if not isinstance(answer, ErrorResponse):
        return True
    if answer.error != ErrorType.DAGRUN_ALREADY_EXISTS:
        raise AirflowRuntimeError(answer)
    return False
