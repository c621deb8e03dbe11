"""What MLflow is told of a training before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipelines.params import Params
from pipelines.provenance import provenance
from pipelines.registry.live import Training


def opening(params: Params, as_of: datetime, key: str, dataset: str, governance: Mapping[str, Any]) -> Training:
    """The training ``key`` (the train step's) on the dataset of that key: parameters, commit, and who asked for it.

    ``governance`` is ``{actor, trigger, reason, episode}``.
    """
    origin = provenance()
    said = {
        "case": params.case,
        "dataset": dataset,
        "commit": origin["commit"],
        "lock": origin["lock"],
        **governance,
    }
    tags = {f"perennial.{name}": str(value) for name, value in said.items() if value}
    tags |= {"mlflow.user": str(governance["actor"]), "mlflow.source.name": "perennial train"}
    tags["perennial.dirty"] = "unknown"
    if origin["dirty"] is not None:
        tags["perennial.dirty"] = str(origin["dirty"])
    if origin["commit"]:
        tags["mlflow.source.git.commit"] = origin["commit"]
    return Training(
        case=params.case,
        as_of=as_of,
        key=key,
        params=open_params(params),
        tags=tags,
        gpus=params.resources.gpus,
        price_per_hour=params.resources.price_per_hour,
    )


def open_params(params: Params) -> dict[str, str]:
    """The parameters that are known before a training: what it is about to choose is told by the register step."""
    known = flat_params(params)
    if not params.compares:
        return known
    tuned = params.train.search.space if params.train.search else {}
    return {name: value for name, value in known.items() if not name.startswith("model.") and name not in tuned}


def flat_params(params: Params) -> dict[str, str]:
    """The parameters as MLflow takes them: texts, by dotted names."""
    return {name: str(value) for name, value in flat(params.model_dump(mode="json")).items()}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found.update(flat(item, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = item
    return found
