"""What comes from what, for Airflow's asset graph: data, dataset, model and release of each case.

Shown, never obeyed: an asset event would start a training again whenever its task is cleared, and an episode trains
once. No DAG is scheduled on an asset; the event that closes the loop is TriggerOnce.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset

from perennial.airflow.links import Ended
from pipelines.line.step import Action, Step


def lineage(step: Step | Action, case: str) -> dict[str, Any]:
    """The inlets and outlets of a step's task, as an operator's arguments."""
    sides = {"inlets": step.uses, "outlets": step.makes}
    return {side: [Asset(f"{case} {kind}", uri=f"perennial://{case}/{kind}")] for side, kind in sides.items() if kind}


class ToldToOpenLineage:
    """What Airflow's provider for OpenLineage, where there is one, asks of an operator of a step."""

    step: Step | Action
    case: str
    ended: Ended | None

    def get_openlineage_facets_on_start(self) -> Any:
        """What is known when the task begins."""
        from perennial.airflow import facets

        return facets.begun(self.step, self.case)

    def get_openlineage_facets_on_complete(self, _task_instance: Any) -> Any:
        """What is known when it has ended, failed or not."""
        from perennial.airflow import facets

        if self.ended is None:
            return facets.begun(self.step, self.case)
        return facets.over(self.step, self.ended)


def to_openlineage(asset: Asset, _context: Any) -> Any:
    """An asset of a case as OpenLineage's dataset, for tasks of anybody that name it as their inlet or outlet."""
    from openlineage.client.event_v2 import Dataset

    namespace, _, name = asset.uri.rpartition("/")
    return Dataset(namespace=namespace, name=name)
