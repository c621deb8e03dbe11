"""Where people read on: the addresses behind a task's buttons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.configuration import conf

from pipelines.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol

LINKS = {
    "train": ("MLflow run", "Grafana"),
    "gate": ("Gate report",),
    "register": ("Model version",),
    "rollout": ("Grafana",),
    "drift": ("Drift report", "Grafana"),
    "report": ("Daily page", "Evidently report"),
}
"""The buttons of a step's task; one without an address is not shown."""
DASHBOARD = "perennial-model"
"""The uid of Grafana's dashboard on a case (compose/grafana/dashboards.py)."""


def run_page(dag: str, run: str) -> str:
    """Airflow's page of a DAG run."""
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag}/runs/{run}"


def links(
    step: str, settings: Settings, case: str, as_of: datetime, run: DagRunProtocol, facts: Mapping[str, Any]
) -> dict[str, str]:
    """The addresses of a step's buttons, by name.

    What is known when the step has ended with ``facts``, or without any (it failed).
    """
    wanted = LINKS.get(step, ())
    mlflow = (settings.mlflow_public_url or settings.mlflow_url).rstrip("/")
    found = {}
    if "Grafana" in wanted and settings.grafana_url:
        found["Grafana"] = f"{settings.grafana_url.rstrip('/')}/d/{DASHBOARD}?var-case={case}"
    if mlflow and step in {"train", "gate"} and (page := training_page(settings.run_dir(case, as_of))):
        # The register step puts the verdict beside the training's record.
        found |= (
            {"MLflow run": f"{mlflow}/{page}"}
            if step == "train"
            else {"Gate report": f"{mlflow}/{page}/artifacts/verdict.json"}
        )
    if mlflow and step == "register" and facts:
        found["Model version"] = f"{mlflow}/#/models/{case}/versions/{facts['version']}"
    if step == "drift" and facts:
        # Its pages are drawn by the report task of the same run, which links to both of them in MLflow.
        found["Drift report"] = f"{run_page(run.dag_id, run.run_id)}/tasks/report"
    if step == "report":
        names = {"Daily page": "page", "Evidently report": "evidently"}
        found |= {
            name: mlflow + facts[fact].removeprefix(settings.mlflow_url.rstrip("/"))
            for name, fact in names.items()
            if fact in facts
        }
    return found


def training_page(run_dir: Path) -> str | None:
    """Where MLflow shows the training of a run: what its manifest says, or what an unfinished one left.

    None without MLflow.
    """
    left = sorted(run_dir.glob(".train.k*/mlflow.page"), key=lambda path: path.stat().st_mtime)
    if left:
        return left[-1].read_text()
    manifest = run_dir / "train" / "manifest.json"
    if not manifest.exists():
        return None
    page: str | None = json.loads(manifest.read_text())["facts"].get("mlflow_page")
    return page
