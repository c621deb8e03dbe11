"""Where a training came from: who asked for it and why, and where its rows are from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from pipelines import ledger, storage
from pipelines.contracts import EpisodeTrigger, Manifest, Trigger
from pipelines.errors import NotKept
from pipelines.settings import Settings


def governance(
    settings: Settings,
    case: str,
    as_of: datetime,
    *,
    trigger: Trigger,
    actor: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """Who asked for a training and why: ``{actor, trigger, reason, episode}``.

    The episode is the one that asked for it, None if none did. Without an ``actor`` it is whoever runs this process,
    without a ``reason`` the trigger says it.
    """
    episode = None
    if trigger in get_args(EpisodeTrigger):
        episode = ledger.asking_episode(settings.ledger, case, as_of)
    why: str = trigger
    if episode:
        why = f"{trigger} episode {episode}"
    return {"actor": actor or settings.who, "trigger": trigger, "reason": reason or why, "episode": episode}


def rows_source(run_dir: Path, dataset: Manifest) -> Mapping[str, Any]:
    """Where the dataset's rows came from at first (name, kind, sha256, notice), as its run's ingest says.

    Empty if that is not there.
    """
    # Beside the dataset itself: a training that is repeated elsewhere links to it.
    run = (run_dir / "dataset").resolve().parent
    try:
        validate = storage.read_manifest(
            storage.find(run / "validate", dataset.inputs["validate"], verify=False), verify=False
        )
        found: Mapping[str, Any] = storage.read_manifest(
            storage.find(run / "ingest", validate.inputs["ingest"], verify=False), verify=False
        ).facts["source"]
    except (KeyError, NotKept):
        return {}
    return found
