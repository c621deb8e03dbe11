"""The two operators of the loop: a step of the line, and the event that closes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator  # noqa: TID253 - the class below extends it
from airflow.sdk import BaseOperator, BaseOperatorLink, TriggerRule
from airflow.sdk.exceptions import AirflowSkipException
from perennial_failures import keeping_errors
from perennial_hooks import connection_json
from perennial_hooks import settings as settings_of_task
from perennial_lineage import lineage
from perennial_links import links, run_page
from perennial_run import KILL_GRACE, failing_fast, resolve_as_of, resolve_trigger, small
from pydantic import BaseModel

from pipelines.cases import load_case
from pipelines.cases.addresses import asking
from pipelines.line import runner
from pipelines.line.order import RECONCILE
from pipelines.line.step import Action, Run, Step
from pipelines.processes import descendants, end_all
from pipelines.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context
    from airflow.sdk.types import DagRunProtocol, TaskInstanceKey


class Link(BaseOperatorLink):
    """A button of a task; Airflow keeps its address as an XCom when the task ends, however it ends."""

    name = ""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def xcom_key(self) -> str:
        """Airflow's own would be the class's name, the same for all buttons of a task."""
        return f"_link_{self.name.lower().replace(' ', '_')}"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's signature
        """What the task has found out, or nothing: then there is no button."""
        found: dict[str, str] = getattr(operator, "links", {})
        return found.get(self.name, "")


class StepOperator(BaseOperator):
    """Runs a step or an action of the line (pipelines/line/order.py); its code is imported in the task only.

    ``part`` names a function of a step's own file that makes a part of its work: ``days`` lists them, ``part`` makes
    that of ``day``, a day or a stretch of days, so that they can be mapped. The XCom is the manifest's path and its
    small facts. A step that declares an ``event`` also hands on, under that name, the conf of the run that its facts
    ask for (``{}``: none; Airflow takes None for a missing XCom).
    """

    ui_color = "#e8f3ec"

    def __init__(self, *, step: Step | Action, case: str, part: str = "", day: str = "", **arguments: Any) -> None:
        super().__init__(**({} if part else lineage(step, case)), **arguments)
        self.step = step
        self.case = case
        self.part = part
        self.day = day
        self.links: dict[str, str] = {}
        self.operator_extra_links = tuple(Link(name) for name in step.buttons)

    def execute(self, context: Context) -> dict[str, Any] | list[str]:
        """One call of the step; errors that a retry cannot mend fail the task at once."""
        with keeping_errors(context), failing_fast(), asking(connection_json):
            params, settings, given = load_case(self.case).params, _settings(self.step, self.case), context["params"]
            assert params is not None  # load_case raises what is wrong with them
            dag_run, step = context["dag_run"], self.step
            as_of = resolve_as_of(given.get("as_of"), dag_run)
            actor = dag_run.triggering_user_name or settings.who
            self.log.info("%s of %s as of %s", step.name, self.case, as_of.isoformat())
            facts: dict[str, Any] = {}
            try:
                if isinstance(step, Action):
                    answer = runner.act(step, params, settings, {**given, "as_of": as_of, "actor": actor})
                    return small(answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer)
                run = Run(
                    params, settings, as_of, actor=actor, **_said(step, given, settings, self.case, as_of, dag_run)
                )
                if self.part:
                    return self._make_part(step, run)
                made = runner.run(step, run)
                facts = made.facts
            finally:
                self.links = links(step, settings, self.case, as_of, dag_run, facts)
        folder = str((run.dir / step.name).relative_to(settings.root))
        if step.event:
            asked = step.facts.of(made).asks(as_of.isoformat(), folder)
            context["ti"].xcom_push(key=step.event, value=asked)
        return {**small(facts), "as_of": as_of.isoformat(), "manifest": f"{folder}/manifest.json"}

    def _make_part(self, step: Step, run: Run) -> dict[str, Any] | list[str]:
        home = runner.home(step)
        if self.part == "days":
            listed: list[str] = home.days(run)
            return listed
        return small(home.part(run, self.day).facts)

    def on_kill(self) -> None:
        """End the processes that the step started (training ranks live in sessions of their own)."""
        end_all(descendants(), grace=KILL_GRACE)


def task_of(step: Step | Action, case: str, *, in_parts: bool) -> StepOperator:
    """The task of a step, ``in_parts`` behind a task for each part of its work; it runs where there is none, too."""
    if not in_parts:
        return StepOperator(task_id=step.name, step=step, case=case)
    days = StepOperator(task_id=f"{step.name}_days", step=step, part="days", case=case)
    part = StepOperator.partial(task_id=f"{step.name}_part", step=step, part="part", case=case).expand(day=days.output)
    whole = StepOperator(task_id=step.name, step=step, case=case, trigger_rule=TriggerRule.NONE_FAILED)
    part >> whole
    return whole


def _settings(step: Step | Action, case: str) -> Settings:
    """The settings of this task.

    A task of a case that is retired is skipped: somebody has triggered its DAG, or nobody could pause it. What puts the
    serving in order runs all the same.
    """
    from pipelines import ledger

    settings = settings_of_task()
    if step is not RECONCILE and (retirement := ledger.retirement(settings.ledger, case)) is not None:
        raise AirflowSkipException(f"nothing is done: {retirement}")
    return settings


def _said(
    step: Step, given: Mapping[str, Any], settings: Settings, case: str, as_of: datetime, dag_run: DagRunProtocol
) -> dict[str, Any]:
    """What was said of the run beside its clock, of what the step takes."""
    said = {name: given[name] for name in step.takes if given.get(name) is not None}
    if "trigger" in step.takes:
        from pipelines import ledger

        has_champion = ledger.champion_before(settings.ledger, case, as_of) is not None
        said["trigger"] = resolve_trigger(given.get("trigger"), dag_run.run_type, has_champion=has_champion)
    return said


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
