"""gate: decide on the evidence, write the verdict, and enter it in the ledger."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import ledger, storage
from pipelines.contracts import Evidence, Manifest, Verdict
from pipelines.evaluation.holdout import BASELINE
from pipelines.gating.decide import decide
from pipelines.gating.evidence import compared
from pipelines.line.facts import EvaluateFacts, GateFacts
from pipelines.line.step import Read, Run, Work
from pipelines.measures import slices
from pipelines.params import Params

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

    The opponent is the champion, else the baseline.
    """
    facts, gate = EvaluateFacts.of(evaluate), params.gate
    opponent = facts.opponent
    known = Evidence(
        metric=gate.metric,
        n=facts.n,
        positives=facts.positives,
        opponent="base_rate" if opponent is None else "champion",
        # An evaluation by an earlier release compares the artefacts alone.
        same_candidate=opponent is not None
        and opponent.get("same_model", opponent["candidate_key"] == evaluate.inputs["export"]),
        lift=None,
        challenger=facts.challenger,
        # With classes the base rate is a list, which is no metric.
        champion=facts.champion
        or {name: value for name, value in facts.base_rate.items() if not isinstance(value, list)},
    )
    if opponent is None and facts.baseline:
        known = known.model_copy(update={"baseline": facts.baseline})
    if scores.is_empty():
        return known
    challenger = scores["challenger"].to_numpy()
    if opponent is not None:
        against = scores["champion"].to_numpy()
    elif BASELINE in scores.columns:
        against = scores[BASELINE].to_numpy()
    else:  # an evaluation by an earlier release
        against = np.broadcast_to(np.array(facts.base_rate["rate"]), challenger.shape)
    masks = slices(scores, gate.slice_fields, gate.bins)
    return compared(known, gate, scores["label"].to_numpy(), against, challenger, masks)
