"""The gate's rules, held by a golden table of evidences and verdicts."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts import Evidence, Interval
from pipelines.errors import DataError
from pipelines.gating.decide import decide
from pipelines.params import Params
from pipelines.params_file import load_params

PARAMS = load_params("bank").model_copy(
    update={
        "gate": load_params("bank").gate.model_copy(
            update={
                "min_lift": 0.005,
                "first_lift": 0.0,
                "confidence": 0.95,
                "min_slice_rows": 100,
                "min_differing": 100,
            }
        ),
        "dataset": load_params("bank").dataset.model_copy(update={"min_holdout": 200}),
    }
)
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.mark.parametrize("row", GOLDEN, ids=[row["name"] for row in GOLDEN])
def test_golden_table(row):
    """An evidence of the table gets exactly its decision, its rule and its number of further rows."""
    verdict = decide(Evidence.model_validate(row["evidence"]), PARAMS)
    assert (verdict.decision, verdict.rule, verdict.rows_needed) == (row["decision"], row["rule"], row["rows_needed"])
    assert verdict.evidence == Evidence.model_validate(row["evidence"])


def test_the_golden_table_covers_every_rule():
    """Each rule of the gate has a row, so that none can change unseen."""
    assert {row["rule"] for row in GOLDEN} == {
        "same_candidate",
        "too_few_rows",
        "one_class",
        "too_few_differ",
        "floor",
        "first_champion",
        "slice_harm",
        "lift",
        "no_lift",
        "undecided",
    }


@pytest.mark.parametrize("row", GOLDEN, ids=[row["name"] for row in GOLDEN])
def test_reasons_name_the_numbers(row):
    """A verdict's reason can be read alone: it has the rows or the interval that decided."""
    verdict = decide(Evidence.model_validate(row["evidence"]), PARAMS)
    if verdict.rule == "same_candidate":
        assert "same model" in verdict.reason
    elif verdict.rule == "slice_harm":
        assert any(
            piece["name"] in verdict.reason and str(piece["n"]) in verdict.reason for piece in row["evidence"]["slices"]
        )
    else:
        assert str(row["evidence"]["n"]) in verdict.reason


def test_of_several_harmed_slices_the_surest_is_named():
    """The reason names the harmed slice with the lowest upper bound."""
    harmed = [
        {"name": f"s={high}", "n": 200, "lift": Interval(value=-0.1, low=-0.2, high=high).model_dump()}
        for high in (-0.01, -0.05, -0.02)
    ]
    evidence = Evidence.model_validate(GOLDEN[0]["evidence"] | {"slices": harmed})
    assert "s=-0.05" in decide(evidence, PARAMS).reason


def test_the_reason_says_what_a_first_champion_was_held_against():
    """The baseline's words stand in the verdict; evidence of an earlier release says base rate, and keeps its hash."""
    [row] = [row for row in GOLDEN if row["name"] == "first champion, better than the base rate"]
    old = Evidence.model_validate(row["evidence"])
    assert " against the training rows' base rate on " in decide(old, PARAMS).reason
    assert "baseline" not in old.model_dump()
    named = old.model_copy(update={"baseline": "median by carrier"})
    assert " against the training rows' median by carrier on 500 rows" in decide(named, PARAMS).reason
    assert named.model_dump()["baseline"] == "median by carrier"


def test_evidence_without_a_lift_is_refused():
    """Rows enough and no lift is a broken evaluation, not a verdict."""
    with pytest.raises(DataError, match="evaluate again"):
        decide(Evidence.model_validate(GOLDEN[0]["evidence"] | {"lift": None}), PARAMS)


bounds = st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted)


@given(bounds, st.integers(200, 10**6))
def test_a_challenger_and_its_opponent_are_never_both_promoted(three, n):
    """If A may replace B, then B may not replace A on the same evidence mirrored."""
    low, value, high = three
    forward = Evidence(
        metric="log_loss",
        n=n,
        positives=n // 2,
        opponent="champion",
        lift=Interval(low=low, value=value, high=high),
        lift_sd=1.0,
    )
    mirrored = forward.model_copy(update={"lift": Interval(low=-high, value=-value, high=-low)})
    assert not (decide(forward, PARAMS).decision == "promote" and decide(mirrored, PARAMS).decision == "promote")


@given(bounds, st.integers(200, 10**6), st.floats(0, 1))
def test_a_better_interval_never_gets_a_worse_verdict(three, n, shift):
    """Moving the whole interval up never undoes a promotion, nor makes a rejection of what was none."""
    rank = {"reject": 0, "inconclusive": 1, "promote": 2}
    low, value, high = three

    def verdict(by):
        lift = Interval(low=low + by, value=value + by, high=high + by)
        return decide(
            Evidence(metric="log_loss", n=n, positives=n // 2, opponent="champion", lift=lift, lift_sd=1.0), PARAMS
        )

    assert rank[verdict(shift).decision] >= rank[verdict(0).decision]


def limited(max_rows: int | None) -> Params:
    """The parameters with a limit of the rows that a run takes, a fifth of them for the holdout."""
    return PARAMS.model_copy(
        update={"dataset": PARAMS.dataset.model_copy(update={"max_rows": max_rows, "holdout_share": 0.2})}
    )


def test_rows_that_max_rows_keeps_out_are_said_to_be_out_of_reach():
    """An undecided verdict whose further rows do not fit says what max_rows lets in and has to be; else nothing."""
    [row] = [row for row in GOLDEN if row["name"] == "wide interval around min_lift"]
    evidence, more = Evidence.model_validate(row["evidence"]), row["rows_needed"]
    wanted = 5 * (evidence.n + more)
    tight = decide(evidence, limited(wanted - 5))
    assert (tight.rule, tight.rows_needed) == ("undecided", more)
    assert f"about {more} further rows would decide" in tight.reason
    assert (
        f"dataset.max_rows {wanted - 5} lets at most {evidence.n + more - 1} into a holdout: raise it to {wanted}"
        in tight.reason
    )
    for enough in (None, wanted):
        assert "max_rows" not in decide(evidence, limited(enough)).reason


def test_a_holdout_that_max_rows_keeps_too_small_is_said_to_be():
    """Too few rows because of max_rows is another thing than too few rows so far."""
    [row] = [row for row in GOLDEN if row["rule"] == "too_few_rows"][:1]
    verdict = decide(Evidence.model_validate(row["evidence"]), limited(500))
    assert "dataset.max_rows 500 lets at most 100 into a holdout: raise it to 1000" in verdict.reason
    assert "max_rows" not in decide(Evidence.model_validate(row["evidence"]), limited(1000)).reason
