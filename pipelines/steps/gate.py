"""gate: decide on the evidence, write the verdict, and enter it in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import ledger, storage
from pipelines.contracts import Evidence, Manifest, SliceEvidence, Trigger, Verdict
from pipelines.evaluation.slices import slices
from pipelines.gating.compare import improvement, lift
from pipelines.gating.decide import decide
from pipelines.measures import row_log_loss
from pipelines.params import Params
from pipelines.settings import Settings

STEP_VERSION = 2
ROOMS = (
    "pipelines.gating.compare",
    "pipelines.gating.decide",
    "pipelines.gating.power",
    "pipelines.measures",
    "pipelines.evaluation.slices",
)
log = logging.getLogger(__name__)


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime, trigger: Trigger = "manual") -> Manifest:
    """Write ``verdict.json`` to ``run_dir/gate``, keep it in the ledger under this step's key, once.

    The log says it, too. A rejected candidate is a verdict, not an error.
    """
    evaluate = storage.read_manifest(run_dir / "evaluate")
    declared = {"gate": params.gate.model_dump(mode="json"), "min_holdout": params.dataset.min_holdout}
    key = storage.step_key("gate", STEP_VERSION, {"evaluate": evaluate.key}, declared)

    def build(folder: Path) -> Mapping[str, Any]:
        verdict = decide(evidence(params, evaluate, pl.read_parquet(run_dir / "evaluate" / "scores.parquet")), params)
        (folder / "verdict.json").write_text(storage.canonical_json(verdict))
        return {
            "decision": verdict.decision,
            "rule": verdict.rule,
            "reason": verdict.reason,
            "verdict_sha256": storage.digest(verdict),
        }

    manifest = storage.commit(
        run_dir / "gate", case=params.case, as_of=as_of, key=key, inputs={"evaluate": evaluate.key}, build=build
    )
    # After the no-op path too: a crash between the folder and the ledger is mended by running again.
    verdict = Verdict.model_validate_json((run_dir / "gate" / "verdict.json").read_bytes())
    ledger.record_verdict(
        settings.ledger, case=params.case, gate_key=manifest.key, as_of=as_of, trigger=trigger, verdict=verdict
    )
    log.info(
        "verdict on %s as of %s: %s, by the rule %s: %s",
        params.case,
        as_of.isoformat(),
        verdict.decision,
        verdict.rule,
        verdict.reason,
    )
    return manifest


def evidence(params: Params, evaluate: Manifest, scores: pl.DataFrame) -> Evidence:
    """What the gate looks at, from evaluate's facts and its scores.

    The opponent is the champion, else the base rate.
    """
    facts, gate = evaluate.facts, params.gate
    opponent = facts["opponent"]
    common = {
        "metric": gate.metric,
        "n": facts["n"],
        "positives": facts["positives"],
        "opponent": "base_rate" if opponent is None else "champion",
        # An evaluation by an earlier release compares the artefacts alone.
        "same_candidate": opponent is not None
        and opponent.get("same_model", opponent["candidate_key"] == evaluate.inputs["export"]),
        "challenger": facts["challenger"],
        # With classes the base rate is a list, which is no metric.
        "champion": facts["champion"]
        or {name: value for name, value in facts["base_rate"].items() if not isinstance(value, list)},
    }
    if scores.is_empty():
        return Evidence(**common, lift=None)
    label = scores["label"].to_numpy()
    rate = np.array(facts["base_rate"]["rate"])
    against = np.broadcast_to(rate, (scores.height, *rate.shape)) if opponent is None else scores["champion"].to_numpy()
    d = improvement(row_log_loss(label, against), row_log_loss(label, scores["challenger"].to_numpy()))
    interval = partial(lift, confidence=gate.confidence, draws=gate.draws, seed=gate.seed)
    return Evidence(
        **common,
        lift=interval(d),
        lift_sd=float(d.std()),
        slices=tuple(
            SliceEvidence(name=name, n=int(mask.sum()), lift=interval(d[mask]))
            for name, mask in slices(scores, gate.slices).items()
            if mask.sum() >= gate.min_slice_rows
        ),
    )
