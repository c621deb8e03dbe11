"""What comes from what, for Airflow's asset graph: data, dataset, model and release of each case.

Shown, never obeyed: an asset event would start a training again whenever its task is cleared, and an episode trains
once. No DAG is scheduled on an asset; the event that closes the loop is TriggerOnce.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset

MAKES = {"ingest": "data", "dataset": "dataset", "register": "model", "rollout": "release", "rollback": "release"}
READS = {"dataset": "data", "register": "dataset", "rollout": "model", "profile": "release"}
"""Step -> what it makes, and what of it it reads."""


def lineage(step: str, case: str) -> dict[str, Any]:
    """The inlets and outlets of a step's task, as an operator's arguments."""
    sides = {"inlets": READS, "outlets": MAKES}
    return {
        side: [Asset(f"{case} {kinds[step]}", uri=f"perennial://{case}/{kinds[step]}")]
        for side, kinds in sides.items()
        if step in kinds
    }
