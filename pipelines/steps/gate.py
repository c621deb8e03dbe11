"""gate: decide on the evidence, write the verdict, and enter it in the ledger."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import ledger, storage
from pipelines.contracts import Evidence, FloorEvidence, Manifest, SliceEvidence, Verdict
from pipelines.evaluation.slices import slices
from pipelines.gating.compare import level, lift
from pipelines.gating.decide import decide
from pipelines.gating.paired import paired
from pipelines.gating.power import SIMULATED, rows_by_resampling
from pipelines.line.facts import EvaluateFacts, GateFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import MORE_IS_BETTER, GateParams, Metric, Params

log = logging.getLogger(__name__)


def work(run: Run, read: Read) -> Work:
    """Write ``verdict.json``, keep it in the ledger under this step's key, once, and say it in the log.

    A rejected candidate is a verdict, not an error.
    """
    params, settings, as_of = run.params, run.settings, run.as_of

    def build(folder: Path, _key: str) -> GateFacts:
        scores = pl.read_parquet(run.dir / "evaluate" / "scores.parquet")
        verdict = decide(evidence(params, read["evaluate"], scores), params)
        (folder / "verdict.json").write_text(storage.canonical_json(verdict))
        return GateFacts(
            decision=verdict.decision,
            rule=verdict.rule,
            reason=verdict.reason,
            verdict_sha256=storage.digest(verdict),
        )

    def enter(made: Manifest) -> None:
        verdict = Verdict.model_validate_json((run.dir / "gate" / "verdict.json").read_bytes())
        ledger.record_verdict(
            settings.ledger, case=run.case, gate_key=made.key, as_of=as_of, trigger=run.trigger, verdict=verdict
        )
        about = (run.case, as_of.isoformat(), verdict.decision, verdict.rule, verdict.reason)
        log.info("verdict on %s as of %s: %s, by the rule %s: %s", *about)

    return Work(build, follow=enter)


def evidence(params: Params, evaluate: Manifest, scores: pl.DataFrame) -> Evidence:
    """What the gate looks at, from evaluate's facts and its scores.

    The opponent is the champion, else the base rate.
    """
    facts, gate = EvaluateFacts.of(evaluate), params.gate
    opponent = facts.opponent
    common: dict[str, Any] = {
        "metric": gate.metric,
        "n": facts.n,
        "positives": facts.positives,
        "opponent": "base_rate" if opponent is None else "champion",
        # An evaluation by an earlier release compares the artefacts alone.
        "same_candidate": opponent is not None
        and opponent.get("same_model", opponent["candidate_key"] == evaluate.inputs["export"]),
        "challenger": facts.challenger,
        # With classes the base rate is a list, which is no metric.
        "champion": facts.champion
        or {name: value for name, value in facts.base_rate.items() if not isinstance(value, list)},
    }
    label = scores["label"].to_numpy()
    challenger = scores["challenger"].to_numpy()
    rate = np.array(facts.base_rate["rate"])
    against = np.broadcast_to(rate, challenger.shape) if opponent is None else scores["champion"].to_numpy()
    pair = paired(gate.metric, label, against, challenger, gate)
    if pair is None:
        return Evidence(**common, lift=None)
    by_slice = {
        name: (int(mask.sum()), paired(gate.metric, label[mask], against[mask], challenger[mask], gate))
        for name, mask in slices(scores, gate.slices).items()
        if mask.sum() >= gate.min_slice_rows
    }
    found = {name: (n, one) for name, (n, one) in by_slice.items() if one is not None}
    confidence = level(gate.metric, gate.confidence)
    interval = partial(lift, confidence=confidence, draws=gate.draws, seed=gate.seed)
    whole = interval(pair)
    more = None
    wanted = gate.first_lift if opponent is None else gate.min_lift
    if gate.metric in SIMULATED and whole.low <= wanted <= whole.high:
        more = rows_by_resampling(pair, min_lift=wanted, confidence=confidence, seed=gate.seed)
    common["challenger"] = {gate.metric: pair.challenger, **common["challenger"]}
    common["champion"] = {gate.metric: pair.opponent, **common["champion"]}
    return Evidence(
        **common,
        lift=whole,
        lift_sd=pair.se * math.sqrt(len(label)),
        differ=pair.differ,
        more_rows=more,
        slices=tuple(SliceEvidence(name=name, n=n, lift=interval(one)) for name, (n, one) in found.items()),
        unchecked=tuple(
            field for field in gate.slice_fields if not any(name.startswith(f"{field}=") for name in found)
        ),
        floors=tuple(_floor(metric, limit, label, challenger, gate) for metric, limit in gate.floors.items()),
    )


def _floor(
    metric: Metric, limit: float, label: NDArray[Any], challenger: NDArray[Any], gate: GateParams
) -> FloorEvidence:
    """The challenger's metric beside what it has to reach."""
    own = paired(metric, label, challenger, challenger, gate)
    if own is None:
        return FloorEvidence(metric=metric, value=None, limit=limit, holds=False)
    holds = own.challenger >= limit if metric in MORE_IS_BETTER else own.challenger <= limit
    return FloorEvidence(metric=metric, value=own.challenger, limit=limit, holds=holds)
