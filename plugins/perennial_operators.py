"""The two operators of the loop: a step of the line, and the event that closes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator  # noqa: TID253 - the class below extends it
from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowSkipException
from perennial_failures import keeping_errors
from perennial_hooks import settings as settings_of_task
from perennial_lineage import lineage
from perennial_links import LINKS, links, run_page
from perennial_run import KILL_GRACE, failing_fast, resolve_as_of, resolve_trigger, small
from pydantic import BaseModel

from pipelines.cases import load_case
from pipelines.contracts import Manifest
from pipelines.processes import descendants, end_all
from pipelines.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context
    from airflow.sdk.types import TaskInstanceKey


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
    """Runs ``pipelines.steps.<step>.run`` with those of its arguments that it names; imports it in the task only.

    ``function`` names another function of the step, and ``day`` is its argument: so a step's parts can be mapped.
    The XCom is the manifest's path and its small facts. The drift step also pushes ``retrain``: the conf of
    the training run that it asks for, or nothing (``{}``: Airflow takes None for a missing XCom).
    """

    ui_color = "#e8f3ec"

    def __init__(self, *, step: str, case: str, function: str = "run", day: str = "", **arguments: Any) -> None:
        super().__init__(**(lineage(step, case) if function == "run" else {}), **arguments)
        self.step = step
        self.case = case
        self.function = function
        self.day = day
        self.links: dict[str, str] = {}
        self.operator_extra_links = tuple(Link(name) for name in LINKS.get(step, ()))

    def execute(self, context: Context) -> dict[str, Any] | list[str]:
        """One call of the step; errors that a retry cannot mend fail the task at once."""
        with keeping_errors(context), failing_fast():
            params, settings, given = load_case(self.case).params, settings_of_task(), context["params"]
            run = context["dag_run"]
            as_of = resolve_as_of(given.get("as_of"), run)
            offers: dict[str, Callable[[], Any]] = {
                "params": lambda: params,
                "settings": lambda: settings,
                "as_of": lambda: as_of,
                "run_dir": lambda: settings.run_dir(self.case, as_of),
                "trigger": lambda: resolve_trigger(
                    given.get("trigger"), run.run_type, has_champion=_has_champion(settings, self.case, as_of)
                ),
                "reason": lambda: given.get("reason"),
                "from_version": lambda: given.get("from_version"),
                "day": lambda: self.day,
                "actor": lambda: run.triggering_user_name or settings.who,
            }
            step = getattr(importlib.import_module(f"pipelines.steps.{self.step}"), self.function)
            self.log.info("%s of %s as of %s", self.step, self.case, as_of.isoformat())
            facts: dict[str, Any] = {}
            try:
                result = step(**{name: offers[name]() for name in inspect.signature(step).parameters})
                facts = result.facts if isinstance(result, Manifest) else {}
            finally:
                self.links = links(self.step, settings, self.case, as_of, run, facts)
        if isinstance(result, list):
            return result
        if not isinstance(result, Manifest):
            return small(result.model_dump(mode="json") if isinstance(result, BaseModel) else result or {})
        if self.function != "run":
            return small(result.facts)
        folder = str((settings.run_dir(self.case, as_of) / self.step).relative_to(settings.root))
        if self.step == "drift":
            asked = {
                "as_of": as_of.isoformat(),
                "trigger": result.facts["trigger"],
                "episode": result.facts["episode"],
                "evidence": f"{folder}/report.json",
            }
            context["ti"].xcom_push(key="retrain", value=asked if result.facts["action"] == "retrain" else {})
        return {**small(result.facts), "as_of": as_of.isoformat(), "manifest": f"{folder}/manifest.json"}

    def on_kill(self) -> None:
        """End the processes that the step started (training ranks live in sessions of their own)."""
        end_all(descendants(), grace=KILL_GRACE)


def _has_champion(settings: Settings, case: str, as_of: Any) -> bool:
    from pipelines import ledger

    return ledger.champion_before(settings.ledger, case, as_of) is not None


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
