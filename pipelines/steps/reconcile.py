"""reconcile: make Triton and MLflow's aliases say what the ledger says. Running it again changes nothing."""

from __future__ import annotations

from typing import Any

from pipelines import ledger
from pipelines.cases import load_fields
from pipelines.deploy import repository, rollout
from pipelines.errors import Unavailable
from pipelines.params import Params
from pipelines.registry import aliases
from pipelines.settings import Settings


def run(params: Params, settings: Settings) -> dict[str, Any]:
    """``{"case", "champion", "repaired": what was mended}``.

    Serving first, so that a missing MLflow delays no repair of Triton. A version that the model repository lost is
    staged again from its bundle, one that does not answer is loaded anew. Raises Unavailable, naming what was left as
    it is, if Triton or MLflow is away (the other one is mended all the same), IntegrityError if the champion cannot be
    brought back.
    """
    case, away = params.case, list[str]()
    repaired: list[str] = []
    with repository.alone(settings.model_repository, case):
        head = ledger.head(settings.ledger, case)
        try:
            repaired += rollout.restore(settings, load_fields(case), params.serving.device)
        except Unavailable as error:
            away.append(f"Triton's versions: {error}")
    try:
        repaired += aliases.project(settings, case)
    except Unavailable as error:
        away.append(f"MLflow's aliases: {error}")
    if away:
        raise Unavailable(f"{case} is not reconciled. {'. '.join(away)}. Mended: {', '.join(repaired) or 'nothing'}")
    return {"case": case, "champion": head.champion if head else None, "repaired": repaired}
