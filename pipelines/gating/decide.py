"""The gate: evidence in, verdict out, and nothing else read.

The rules, in the order in which they are asked:

1. same_candidate   challenger and champion are one model, byte for byte             inconclusive
2. too_few_rows     the holdout has fewer than dataset.min_holdout rows             inconclusive
3. one_class        the holdout has only one class                                  inconclusive
4. too_few_differ   fewer than gate.min_differing rows are answered differently     inconclusive
5. floor            a metric of gate.floors is beyond its limit                     reject
6. slice_harm       a declared slice of >= gate.min_slice_rows rows is worse with
                    confidence (upper bound < 0), however good the whole is; one of
                    which too few rows differ says nothing (compare.fewest)         reject
7. lift             lower bound > gate.min_lift                                     promote
8. no_lift          upper bound < gate.min_lift                                     reject
9. undecided        the interval holds min_lift: names the rows that would decide   inconclusive

Without a champion the opponent is the baseline (of the training rows: evaluation/baseline.py), gate.first_lift takes
min_lift's place, and rules 7 and 8 are called first_champion.

Where dataset.max_rows keeps the rows that are missing out of every holdout, the reason says so and what it would have
to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.contracts import Decision, Evidence, FloorEvidence, Interval, SliceEvidence, Verdict
from pipelines.errors import DataError
from pipelines.gating.compare import level
from pipelines.gating.power import SIMULATED, largest_holdout, max_rows_for, rows_by_width, rows_needed
from pipelines.params import METRICS, DatasetParams, GateParams, Params


@dataclass(frozen=True)
class _Said:
    decision: Decision
    rule: str
    reason: str
    more: int | None = None


def decide(evidence: Evidence, params: Params) -> Verdict:
    """The verdict on ``evidence`` under ``params.gate`` and ``params.dataset.min_holdout``.

    Raises DataError if the evidence compares enough rows of both classes and carries no lift.
    """
    gate = params.gate
    wanted = gate.first_lift if evidence.opponent == "base_rate" else gate.min_lift
    said = _incomparable(evidence, params) or _refused(evidence, gate) or _compared(evidence, wanted, params)
    return Verdict(
        decision=said.decision,
        rule=said.rule,
        reason=said.reason,
        evidence=evidence,
        min_lift=wanted,
        rows_needed=said.more,
    )


def _incomparable(evidence: Evidence, params: Params) -> _Said | None:
    """Rules 1 to 4: the rows cannot tell the two apart."""
    n, differ = evidence.n, evidence.differ
    if evidence.same_candidate:
        return _Said(
            "inconclusive", "same_candidate", "the challenger is the champion: the same model, nothing to compare"
        )
    least = params.dataset.min_holdout
    if n < least:
        text = f"the holdout has {n} rows, at least {least} are needed{out_of_reach(least, params.dataset)}"
        return _Said("inconclusive", "too_few_rows", text, least - n)
    if evidence.positives in {0, n} and evidence.metric not in METRICS["number"]:
        return _Said("inconclusive", "one_class", f"all {n} rows of the holdout have the same label")
    least = params.gate.min_differing
    if differ is not None and differ < least:
        more = max(1, math.ceil(n * least / differ) - n) if differ else None
        text = f"too few rows differ: {differ} of {n}, at least {least} are needed"
        return _Said("inconclusive", "too_few_differ", f"{text}; {_wanted(n, more, params.dataset)}", more)
    return None


def _refused(evidence: Evidence, gate: GateParams) -> _Said | None:
    """Rules 5 and 6: whatever the lift is."""
    if missed := [floor for floor in evidence.floors if not floor.holds]:
        return _Said("reject", "floor", f"{'; '.join(map(_beyond, missed))}, on {evidence.n} rows")
    harmed = worst_harm(evidence, gate.min_slice_rows)
    if harmed is None:
        return None
    told = f"worse on {harmed.name}: {_signed(evidence, harmed.lift)} on {harmed.n} rows, the upper bound is below 0"
    return _Said("reject", "slice_harm", told)


def _compared(evidence: Evidence, wanted: float, params: Params) -> _Said:
    """Rules 7 to 9: the interval of the lift against what is wanted of it."""
    lift, n = evidence.lift, evidence.n
    if lift is None:
        raise DataError(f"evidence over {n} rows has no lift: evaluate again")
    better, worse, against = "lift", "no_lift", ""
    if evidence.opponent == "base_rate":
        better, worse, against = "first_champion", "first_champion", f" against the training rows' {evidence.baseline}"
    text = f"{_signed(evidence, lift)}{against} on {n} rows"
    if lift.low > wanted:
        return _Said("promote", better, f"{text}: the lower bound is above {wanted:g}{_left_out(evidence)}")
    if lift.high < wanted:
        return _Said("reject", worse, f"{text}: the upper bound is below {wanted:g}")
    more = _further_rows(evidence, lift, wanted, params.gate)
    return _Said(
        "inconclusive", "undecided", f"{text}: {wanted:g} lies inside; {_wanted(n, more, params.dataset)}", more
    )


def _further_rows(evidence: Evidence, lift: Interval, wanted: float, gate: GateParams) -> int | None:
    if evidence.metric in SIMULATED:
        return evidence.more_rows
    if evidence.lift_sd is None:
        return None
    confidence = level(evidence.metric, gate.confidence)
    by_formula = rows_needed(lift.value, evidence.lift_sd, evidence.n, min_lift=wanted, confidence=confidence)
    by_width = rows_by_width(lift, evidence.n, wanted)
    return None if by_formula is None or by_width is None else max(by_formula, by_width)


def _beyond(floor: FloorEvidence) -> str:
    if floor.value is None:
        return f"{floor.metric} is not defined on the holdout, and gate.floors asks for {floor.limit:g}"
    return f"{floor.metric} is {floor.value:.4f}, beyond the limit of gate.floors, {floor.limit:g}"


def _left_out(evidence: Evidence) -> str:
    if not evidence.unchecked:
        return ""
    return f"; not checked, for too few rows: {', '.join(evidence.unchecked)}"


def _wanted(rows: int, more: int | None, params: DatasetParams) -> str:
    if more is None:
        return "no number of rows would decide"
    return f"about {more} further rows would decide{out_of_reach(rows + more, params)}"


def out_of_reach(rows: int, params: DatasetParams) -> str:
    """What to add to a sentence that wants a holdout of so many rows, where ``max_rows`` does not let one have them."""
    most = largest_holdout(params)
    if most is None or rows <= most:
        return ""
    wanted = max_rows_for(rows, params)
    return f"; dataset.max_rows {params.max_rows} lets at most {most} into a holdout: raise it to {wanted}"


def worst_harm(evidence: Evidence, min_rows: int) -> SliceEvidence | None:
    """The slice of at least ``min_rows`` rows that is worse with confidence.

    Of several it is the one with the lowest upper bound.
    """
    harmed = [piece for piece in evidence.slices if piece.n >= min_rows and piece.lift.high < 0]
    return min(harmed, key=lambda piece: piece.lift.high, default=None)


def _signed(evidence: Evidence, lift: Interval) -> str:
    return f"improvement of {evidence.metric} {lift.value:+.4f} [{lift.low:+.4f}, {lift.high:+.4f}]"
