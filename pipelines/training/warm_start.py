"""A warm start: the champion's training, which a new one goes on from."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pipelines import ledger, storage
from pipelines.encoding import BUNDLE, read_scales
from pipelines.fields import Scale
from pipelines.params import Params
from pipelines.settings import Settings


class WarmStart(NamedTuple):
    """What a training goes on from.

    The key of the champion's training, its weights file, how it scaled its numbers, and the hash of its derived
    features ("": it had none).
    """

    key: str
    weights: Path
    scales: dict[str, Scale]
    features_hash: str = ""


def warm_start(params: Params, settings: Settings, as_of: datetime) -> WarmStart | None:
    """The training of the champion at ``as_of``; None if no warm start is asked for or there is no champion.

    Raises NotKept if that training is in no folder any more.
    """
    if not params.train.warm_start:
        return None
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    if champion is None:
        return None
    bundle = settings.root / champion.bundle
    exported = storage.find(bundle, champion.candidate_key)
    key = storage.read_manifest(exported).inputs["train"]
    folder = storage.find(bundle.parent / "train", key)
    scales = read_scales(storage.read_manifest(folder).facts.get("scales", {}))
    about = json.loads((exported / BUNDLE).read_text()) if (exported / BUNDLE).exists() else {}
    return WarmStart(key, folder / "weights.pt", scales, about.get("features_hash", ""))
