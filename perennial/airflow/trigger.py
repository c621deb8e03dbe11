"""The event that closes the loop, and for anybody's DAG: a run that is started once by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator  # noqa: TID253 - the class below extends it
from airflow.sdk.exceptions import AirflowSkipException

from perennial.airflow.links import Link, run_page

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context


class TriggerOnce(TriggerDagRunOperator):
    """Starts a DAG run under a name that is its identity: however often it is asked, there is one run.

    Without a ``conf`` there is nothing to start, and the task is skipped. A run of that name that is there
    already is a skip too, also if it was this very task's own first request whose answer was lost.
    """

    template_fields: Sequence[str] = (*TriggerDagRunOperator.template_fields, "note")
    # Airflow's own button leads to a run named None when there was nothing to start.
    operator_extra_links = [Link("Triggered DAG")]  # noqa: RUF012 - a list to Airflow

    def __init__(self, *, trigger_run_id: str, conf: Any, **arguments: Any) -> None:
        # No logical date: it would be unique per DAG too, and two reasons to train may fall on one moment.
        super().__init__(
            trigger_run_id=trigger_run_id, conf=conf, logical_date=None, skip_when_already_exists=True, **arguments
        )

    def execute(self, context: Context) -> None:
        """Ask for the run; its name and page are noted first, because Airflow forgets them when the run exists."""
        if not self.conf:
            raise AirflowSkipException("nothing to start: the step before did not ask for it")
        self.links = {"Triggered DAG": run_page(self.trigger_dag_id, str(self.trigger_run_id))}
        context["ti"].xcom_push(key="trigger_run_id", value=str(self.trigger_run_id))
        super().execute(context)
