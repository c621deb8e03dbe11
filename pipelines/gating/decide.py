"""The gate: evidence in, verdict out, and nothing else read.

The rules, in the order in which they are asked:

1. same_candidate   challenger and champion are one model, byte for byte             inconclusive
2. too_few_rows     the holdout has fewer than dataset.min_holdout rows             inconclusive
3. one_class        the holdout has only one class                                  inconclusive
4. first_champion   no champion yet: better than the base rate on the holdout?      promote | reject
5. slice_harm       a declared slice of >= gate.min_slice_rows rows is worse with
                    confidence (upper bound < 0), however good the whole is         reject
6. lift             lower bound > gate.min_lift                                     promote
7. no_lift          upper bound < gate.min_lift                                     reject
8. undecided        the interval holds min_lift: names the rows that would decide   inconclusive

Where dataset.max_rows keeps the rows that are missing out of every holdout, the reason says so and what it would have
to be.
"""

from __future__ import annotations

from pipelines.contracts import Decision, Evidence, Interval, SliceEvidence, Verdict
from pipelines.errors import DataError
from pipelines.gating.power import largest_holdout, max_rows_for, rows_needed
from pipelines.params import DatasetParams, GateParams, Params


def decide(evidence: Evidence, params: Params) -> Verdict:
    """The verdict on ``evidence`` under ``params.gate`` and ``params.dataset.min_holdout``.

    Raises DataError if the evidence compares enough rows of both classes and carries no lift.
    """
    gate = params.gate
    least = params.dataset.min_holdout

    def answer(decision: Decision, rule: str, reason: str, more: int | None = None) -> Verdict:
        return Verdict(
            decision=decision, rule=rule, reason=reason, evidence=evidence, min_lift=gate.min_lift, rows_needed=more
        )

    if evidence.same_candidate:
        return answer(
            "inconclusive", "same_candidate", "the challenger is the champion: the same model, nothing to compare"
        )
    if evidence.n < least:
        text = f"the holdout has {evidence.n} rows, at least {least} are needed{out_of_reach(least, params.dataset)}"
        return answer("inconclusive", "too_few_rows", text, least - evidence.n)
    if evidence.positives in {0, evidence.n}:
        return answer("inconclusive", "one_class", f"all {evidence.n} rows of the holdout have the same label")
    lift = evidence.lift
    if lift is None:
        raise DataError(f"evidence over {evidence.n} rows has no lift: evaluate again")
    if evidence.opponent == "base_rate":
        text = f"{_signed(evidence, lift)} against the training rows' base rate on {evidence.n} rows"
        return answer("promote" if lift.value > 0 else "reject", "first_champion", text)
    harmed = worst_harm(evidence, gate.min_slice_rows)
    if harmed is not None:
        return answer(
            "reject",
            "slice_harm",
            f"worse on {harmed.name}: {_signed(evidence, harmed.lift)} on {harmed.n} rows, the upper bound is below 0",
        )
    text = f"{_signed(evidence, lift)} on {evidence.n} rows"
    if lift.low > gate.min_lift:
        return answer("promote", "lift", f"{text}: the lower bound is above {gate.min_lift:g}")
    if lift.high < gate.min_lift:
        return answer("reject", "no_lift", f"{text}: the upper bound is below {gate.min_lift:g}")
    more = _further_rows(evidence, lift, gate)
    wanted = _wanted(evidence.n, more, params.dataset)
    return answer("inconclusive", "undecided", f"{text}: {gate.min_lift:g} lies inside; {wanted}", more)


def _further_rows(evidence: Evidence, lift: Interval, gate: GateParams) -> int | None:
    if evidence.lift_sd is None:
        return None
    return rows_needed(lift.value, evidence.lift_sd, evidence.n, min_lift=gate.min_lift, confidence=gate.confidence)


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
