"""reconcile: make Triton and MLflow's aliases say what the ledger says. Running it again changes nothing."""

from __future__ import annotations

from typing import Any

from pipelines import ledger
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.deploy import repository, rollout
from pipelines.registry import aliases

STEP_VERSION = 1
ROOMS = ("pipelines.deploy.rollout", "pipelines.deploy.repository", "pipelines.deploy.triton", "pipelines.registry.aliases", "pipelines.runtime")


def run(params: Params, settings: Settings) -> dict[str, Any]:
    """``{"case", "champion", "repaired": what was mended}``; serving first, so that a missing MLflow delays no repair of Triton.

    A version that the model repository lost is staged again from its bundle, one that does not answer is
    loaded anew. Raises Unavailable if Triton or MLflow is down, IntegrityError if the champion cannot be brought back.
    """
    case = params.case
    with repository.alone(settings.model_repository, case):
        head = ledger.head(settings.ledger, case)
        repaired = rollout.restore(settings, load_fields(case))
    repaired += aliases.project(settings, case)
    return {"case": case, "champion": head.champion if head else None, "repaired": repaired}
