"""Where people read on: the addresses behind a task's buttons."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from pipelines.contracts import Manifest
from pipelines.line.order import REPORT, TRAIN
from pipelines.line.step import Action, Step
from pipelines.settings import Settings
from pipelines.storage import MANIFEST

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import DagRunProtocol, TaskInstanceKey

DASHBOARD = "perennial-model"
"""The uid of Grafana's dashboard on a case (compose/grafana/dashboards.py)."""


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


def run_page(dag: str, run: str) -> str:
    """Airflow's page of a DAG run."""
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag}/runs/{run}"


@dataclass(frozen=True)
class Ended:
    """A task that has ended: ``facts`` are what its step said, and ``made`` what it left; none if it failed."""

    settings: Settings
    case: str
    as_of: datetime
    run: DagRunProtocol
    facts: Mapping[str, Any]
    made: Manifest | None = None

    @property
    def mlflow(self) -> str:
        """Where people find MLflow, or empty."""
        return (self.settings.mlflow_public_url or self.settings.mlflow_url).rstrip("/")


def links(step: Step | Action, ended: Ended) -> dict[str, str]:
    """The addresses of a step's buttons, by name.

    What is known when the step has ended with facts, or without any (it failed).
    """
    found = {name: BUTTONS[name](ended) for name in step.buttons}
    return {name: address for name, address in found.items() if address}


def _grafana(ended: Ended) -> str:
    url = ended.settings.grafana_url.rstrip("/")
    if not url:
        return ""
    return f"{url}/d/{DASHBOARD}?var-case={ended.case}"


def _training(ended: Ended) -> str:
    if not ended.mlflow:
        return ""
    page = training_page(ended.settings.run_dir(ended.case, ended.as_of))
    if not page:
        return ""
    return f"{ended.mlflow}/{page}"


def _gate_report(ended: Ended) -> str:
    # The register step puts the verdict beside the training's record.
    training = _training(ended)
    if not training:
        return ""
    return f"{training}/artifacts/verdict.json"


def _model_version(ended: Ended) -> str:
    if not (ended.mlflow and ended.facts):
        return ""
    return f"{ended.mlflow}/#/models/{ended.case}/versions/{ended.facts['version']}"


def _drift_report(ended: Ended) -> str:
    # Its pages are drawn by the report task of the same run, which links to both of them in MLflow.
    if not ended.facts:
        return ""
    return f"{run_page(ended.run.dag_id, ended.run.run_id)}/tasks/{REPORT.name}"


def _page(fact: str, ended: Ended) -> str:
    """A page that the step put into MLflow, as people's browsers find it."""
    address: str | None = ended.facts.get(fact)
    if address is None:
        return ""
    return ended.mlflow + address.removeprefix(ended.settings.mlflow_url.rstrip("/"))


BUTTONS: dict[str, Callable[[Ended], str]] = {
    "MLflow run": _training,
    "Gate report": _gate_report,
    "Model version": _model_version,
    "Grafana": _grafana,
    "Drift report": _drift_report,
    "Daily page": partial(_page, "page"),
    "Evidently report": partial(_page, "evidently"),
}
"""What a step's declaration may name as its buttons; one without an address is not shown."""


def training_page(run_dir: Path) -> str | None:
    """Where MLflow shows the training of a run: what its manifest says, or what an unfinished one left.

    None without MLflow.
    """
    left = sorted(run_dir.glob(f".{TRAIN.name}.k*/mlflow.page"), key=lambda path: path.stat().st_mtime)
    if left:
        return left[-1].read_text()
    manifest = run_dir / TRAIN.name / MANIFEST
    if not manifest.exists():
        return None
    page: str | None = json.loads(manifest.read_text())["facts"].get("mlflow_page")
    return page
