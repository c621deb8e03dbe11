"""The operator of a step of the line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, TriggerRule
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import BaseModel

from perennial.airflow.failures import keeping_errors
from perennial.airflow.hooks import connection_json
from perennial.airflow.hooks import settings as settings_of_task
from perennial.airflow.lineage import ToldToOpenLineage, lineage
from perennial.airflow.links import Ended, Link, links
from perennial.airflow.run import KILL_GRACE, failing_fast, resolve_as_of, resolve_trigger, small
from pipelines.cases import load_case
from pipelines.cases.addresses import asking
from pipelines.contracts import Manifest
from pipelines.line import runner
from pipelines.line.order import BY_NAME, RECONCILE
from pipelines.line.step import Action, Run, Step
from pipelines.processes import descendants, end_all
from pipelines.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context
    from airflow.sdk.types import DagRunProtocol


Verb = Step | Action


class StepOperator(ToldToOpenLineage, BaseOperator):
    """Runs a step or an action of the line (pipelines/line/order.py); its code is imported in the task only.

    ``step`` may be its name. A DAG of anybody's needs no parameter of the run: ``as_of``, ``trigger``, ``reason`` are
    taken from ``params`` where there are any, else the clock is the end of the run's data interval.
    ``part`` names a function of a step's own file that makes a part of its work: ``days`` lists them, ``part`` makes
    that of ``day``, a day or a stretch of days, so that they can be mapped. The XCom is the manifest's path and its
    small facts. A step that declares an ``event`` also hands on, under that name, the conf of the run that its facts
    ask for (``{}``: none; Airflow takes None for a missing XCom).
    """

    ui_color = "#e8f3ec"

    def __init__(self, *, step: Verb | str, case: str, part: str = "", day: str = "", **arguments: Any) -> None:
        super().__init__(**({} if part else lineage(named(step), case)), **arguments)
        self.step = named(step)
        self.case = case
        self.part = part
        self.day = day
        self.links: dict[str, str] = {}
        self.ended: Ended | None = None
        self.operator_extra_links = tuple(Link(name) for name in self.step.buttons)

    def execute(self, context: Context) -> dict[str, Any] | list[str]:
        """One call of the step; errors that a retry cannot mend fail the task at once."""
        with keeping_errors(context), failing_fast(), asking(connection_json):
            params, settings, given = (
                load_case(self.case).params,
                task_settings(self.step, self.case),
                context["params"],
            )
            assert params is not None  # load_case raises what is wrong with them
            dag_run, step = context["dag_run"], self.step
            as_of = resolve_as_of(given.get("as_of"), dag_run)
            actor = dag_run.triggering_user_name or settings.who
            self.log.info("%s of %s as of %s", step.name, self.case, as_of.isoformat())
            facts: dict[str, Any] = {}
            made: Manifest | None = None
            try:
                if isinstance(step, Action):
                    answer = runner.act(step, params, settings, {**given, "as_of": as_of, "actor": actor})
                    facts = answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
                    return small(facts)
                run = Run(
                    params, settings, as_of, actor=actor, **_said(step, given, settings, self.case, as_of, dag_run)
                )
                if self.part:
                    return self._make_part(step, run)
                made = runner.run(step, run)
                facts = made.facts
            finally:
                self.ended = Ended(settings, self.case, as_of, dag_run, facts, made)
                self.links = links(step, self.ended)
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


def task_of(step: Verb, case: str, *, in_parts: bool, each: str = "part") -> StepOperator:
    """The task of a step, ``in_parts`` behind a task for ``each`` part of its work; it runs without any, too."""
    if not in_parts:
        return StepOperator(task_id=step.name, step=step, case=case)
    days = StepOperator(task_id=f"{step.name}_days", step=step, part="days", case=case)
    partial = StepOperator.partial(task_id=f"{step.name}_{each}", step=step, part="part", case=case)
    part = partial.expand(day=days.output)
    whole = StepOperator(task_id=step.name, step=step, case=case, trigger_rule=TriggerRule.NONE_FAILED)
    part >> whole
    return whole


def named(step: Verb | str) -> Verb:
    """A step by its name; ValueError lists the names that there are."""
    if not isinstance(step, str):
        return step
    if step not in BY_NAME:
        raise ValueError(f"there is no step {step!r}: choose one of {', '.join(BY_NAME)}")
    return BY_NAME[step]


def task_settings(step: Verb, case: str) -> Settings:
    """The settings of this task of a case.

    A task of a case that is retired is skipped: somebody has triggered its DAG, or nobody could pause it. What puts the
    serving in order runs all the same.
    """
    from pipelines import ledger, objects

    settings = settings_of_task()
    objects.attach(settings)
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
