"""What a DAG run means to the loop: its cases, its clock, its trigger, and which errors end it at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk import CronDataIntervalTimetable, Param, get_parsing_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipelines.case_files import case_names
from pipelines.cases.surveying import survey
from pipelines.contracts import Trigger
from pipelines.errors import PerennialError, TooFewRows
from pipelines.faults import of_case, of_disk, told
from pipelines.moments import parse_as_of
from pipelines.params import Params
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol

DEFAULTS: dict[str, Any] = {
    "owner": "perennial",
    "retries": 3,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
}
"""What every task has in common: a service that does not answer is tried again after 5, 10 and 20 seconds."""
KILL_GRACE = 2.5
"""Seconds between TERM and KILL of what a task has started: Airflow kills the task itself after 5."""


def readable_cases(wanted: Collection[str] | None = None) -> tuple[list[Params], dict[str, str]]:
    """The parameters of the cases that can work, and by case what is wrong with the others; of all, or those wanted.

    One broken case must not take the DAGs of the others with it: dags/perennial_cases.py reports it. A task needs
    its own DAG only, and no other case is looked at for it.
    """
    dag_id = get_parsing_context().dag_id
    names = wanted
    if dag_id is not None:
        names = [name for name in (case_names() if wanted is None else wanted) if dag_id.startswith(f"{name}_")]
    good: list[Params] = []
    broken: dict[str, str] = {}
    for case in survey(names=names):
        why = case.problem if case.params is None else case.problem or _schedule_problem(case.params)
        if case.params is None or why:
            broken[case.name] = why
        else:
            good.append(case.params)
    return good, broken


def _schedule_problem(params: Params) -> str:
    """Why Airflow would refuse the file that has this case's DAGs; it judges schedules when all of them are made."""
    for name, cron in (("training", params.schedule.training), ("drift", params.schedule.drift)):
        if cron is None:
            continue
        from airflow.timetables.interval import CronDataIntervalTimetable as Checked

        try:
            Checked(cron, timezone="UTC").validate()
        except Exception as error:  # noqa: BLE001 - whatever its parser raises
            return (
                f"schedule.{name}: {cron!r} is no schedule to Airflow ({error}): "
                "write minute, hour, day, month and weekday, as in 0 2 * * *"
            )
    return ""


def timetable(cron: str | None) -> CronDataIntervalTimetable | None:
    """The schedule of a DAG: an interval whose end is the run's clock (a bare cron string gives empty intervals).

    None without a cron expression, and where ``PERENNIAL_SCHEDULES`` is off: a replay brings its own clock.
    """
    if not cron or not read_settings().schedules:
        return None
    return CronDataIntervalTimetable(cron, timezone="UTC")


def clock_param(params: Params) -> Param:
    """The ``as_of`` field of the trigger form: optional where the case follows today, required where it is history."""
    about = "Rows and labels up to here count (UTC). "
    if params.schedule.live:
        return Param(
            None, about + "Empty: the end of the run's data interval.", type=["null", "string"], format="date-time"
        )
    return Param(description=about + "Required: this case is history.", type="string", format="date-time")


def trigger_param() -> Param:
    """The ``trigger`` field of the trigger form: why the run was started; empty: the run's own type says it."""
    return Param(
        None,
        "Why this run: empty means schedule or manual, as the run is.",
        type=["null", "string"],
        enum=[None, *get_args(Trigger)],
    )


def reason_param() -> Param:
    """The ``reason`` field of the trigger form: what the record of the training says for good; empty: its trigger."""
    return Param(None, "Why, in your words: kept in the training's record.", type=["null", "string"])


def resolve_as_of(given: str | None, run: DagRunProtocol) -> datetime:
    """The one clock of a run, in UTC and whole seconds.

    What was given, read as the command line reads it, else the end of the data interval, else (a manual run without
    one) its logical time or the time from which it may run. ConfigError if ``given`` is no moment, or no whole second.
    """
    if given:
        return parse_as_of(given)
    moment = run.data_interval_end or run.logical_date or run.run_after
    return moment.astimezone(UTC).replace(microsecond=0)


def resolve_trigger(given: Trigger | None, run_type: str, *, has_champion: bool) -> Trigger:
    """Why a run happens: ``initial`` as long as the case has no champion, else what was given, else its type."""
    if not has_champion:
        return "initial"
    return given or ("schedule" if run_type in {"scheduled", "backfill"} else "manual")


def train_arguments(params: Params) -> dict[str, Any]:
    """What the train task asks of the scheduler, from the case's resources.

    A task takes as many slots of its pool as it has GPUs. It is ended when it takes twice its budget and half an
    hour more, or a day without a budget: whatever hangs, the retry goes on at the last checkpoint.
    """
    wanted = params.resources
    budget = params.train.budget_minutes
    limit = timedelta(days=1) if budget is None else timedelta(minutes=30 + 2 * budget)
    arguments: dict[str, Any] = {"execution_timeout": limit}
    if wanted.queue is not None:
        arguments["queue"] = wanted.queue
    if wanted.pool is not None:
        arguments |= {"pool": wanted.pool, "pool_slots": max(1, wanted.gpus)}
    return arguments


@contextmanager
def failing_fast() -> Iterator[None]:
    """The one mapping of errors.

    What trying again cannot mend fails the task at once, too few rows skip it, the rest is retried. An error that a
    case's own code raised is told as that: case, file and line, and what to do.
    """
    try:
        yield
    except TooFewRows as error:
        # Labels take their time: a run that comes too early has nothing to do, and is not red.
        raise AirflowSkipException(str(error)) from error
    except PerennialError as error:
        if error.retry:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {told(error)}") from error
    except Exception as error:
        known = of_disk(error) or of_case(error)
        if known is None:
            raise
        if known.retry:
            raise known from error
        raise AirflowFailException(f"{type(known).__name__}: {known}") from error


def small(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that may travel between tasks: single values, no lists, no tables, no long texts."""
    return {
        k: v
        for k, v in facts.items()
        if v is None or isinstance(v, bool | int | float) or (isinstance(v, str) and len(v) <= 500)
    }
