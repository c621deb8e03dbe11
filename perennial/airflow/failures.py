"""Failures: people are told at once of a run that failed, with the task and its last error.

The task keeps its error, as only its own process knows it. The DAG processor tells: it calls a DAG's callback when the
scheduler has marked the run failed, that is once, after all tries, and also where a task's process was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from pipelines.params_file import load_params
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

ERROR = "error"
"""The XCom in which the last try of a task keeps its error; Airflow empties it when the next try begins."""
MOST = 500
"""Characters of an error that travel."""

log = logging.getLogger(__name__)


@contextmanager
def keeping_errors(context: Context) -> Iterator[None]:
    """What ends the task's work is kept where :func:`tell_failure` finds it; a skip is no error."""
    try:
        yield
    except AirflowSkipException:
        raise
    except (Exception, AirflowTaskTimeout) as error:
        try:
            context["ti"].xcom_push(key=ERROR, value=_said(error))
        except Exception:
            log.exception("the error of this task is not kept for the message: Airflow took no XCom")
        raise


def _said(error: BaseException) -> str:
    """Kind and first line of an error, without what Airflow knows to be secret.

    Of an AirflowFailException it is its text, which says the kind itself.
    """
    from airflow.sdk.log import redact  # type: ignore[attr-defined] # it comes from elsewhere, and plugins get it here

    kind = ""
    if not isinstance(error, AirflowFailException):
        kind = f"{type(error).__name__}: "
    return str(redact(f"{kind}{(str(error).splitlines() or [''])[0]}"))[:MOST]


def _kept(task: Any) -> str:
    """The error that a task left; people are told of the failure also where it cannot be read."""
    try:
        found = task.xcom_pull(task_ids=task.task_id, key=ERROR, map_indexes=task.map_index)
    except Exception:
        log.exception("the error of task %s cannot be read", task.task_id)
        return "its error could not be read from Airflow: see its log"
    return str(found or "it left no error (its process was ended from outside): see its log")


def tell_failure(case: str) -> Callable[[Any], None]:
    """The ``on_failure_callback`` of a DAG of the case."""
    return partial(_tell, case)


def _tell(case: str, context: dict[str, Any]) -> None:
    """Tell people of the run that failed; raises Undelivered if a sink did not take it: Airflow logs that."""
    from pipelines.alerts import runs
    from pipelines.provenance import wall_time

    params = load_params(case)
    settings = read_settings()
    task = context.get("ti")
    if task is None:
        name = None
        why = str(context.get("reason") or "see its tasks in Airflow")
    else:
        name = task.task_id
        why = _kept(task)
    at = getattr(task, "end_date", None) or wall_time()
    told = runs.tell(
        params,
        settings,
        runs.failed(params, settings.runbooks, context["dag"].dag_id, context["run_id"], at, name, why),
    )
    log.info("told %s", ", ".join(told))
