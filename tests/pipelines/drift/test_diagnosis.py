"""pipelines/drift/why/diagnosis.py and findings.py: the kind of shift, why, where and since when."""

from dataclasses import replace
from datetime import date, timedelta

import polars as pl
import pytest

from pipelines.contracts import FeatureDrift, Interval
from pipelines.drift.evidence import LabelEvidence
from pipelines.drift.inputs.compare import compare
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.labels import performance
from pipelines.drift.profile.counts import merge, profile_frame
from pipelines.drift.why.diagnosis import diagnose, kind, nothing_seen
from pipelines.drift.why.findings import Findings, Seen, look
from pipelines.drift.why.mixture import Mixture
from pipelines.drift_report import LabelMovements
from pipelines.fields import Binary
from tests.pipelines.drift.stream import DELAY, FIELDS, PARAMS, SPEC, START, Stream, midnight

EXPLAINS = Mixture((0.2, 0.8), explains=True, unexplained=())
DOES_NOT = Mixture((0.4, 0.6), explains=False, unexplained=("age",))
DRIFT_AT = START + timedelta(days=3)
DROPPED = LabelEvidence(rows=400, errors=150, baseline=0.1, drop=Interval(value=0.5, low=0.4, high=0.6))


@pytest.mark.parametrize(
    ("findings", "named"),
    [
        (Findings("steady", "steady", "unknown"), "none"),
        (Findings("steady", "steady", "held"), "none"),
        (Findings("steady", "steady", "held", shares="moved"), "label"),
        (Findings("steady", "moved", "unknown"), "label"),
        (Findings("steady", "moved", "held"), "label"),
        (Findings("steady", "steady", "dropped"), "concept"),
        (Findings("steady", "moved", "dropped"), "concept"),
        (Findings("moved", "steady", "unknown"), "covariate"),
        (Findings("moved", "moved", "held", mixture=DOES_NOT), "covariate"),
        (Findings("moved", "moved", "held", mixture=EXPLAINS), "label"),
        (Findings("moved", "moved", "held", mixture=EXPLAINS, shares="moved", given="steady"), "label"),
        (Findings("moved", "moved", "held", mixture=EXPLAINS, shares="steady", given="steady"), "covariate"),
        (Findings("moved", "moved", "held", mixture=EXPLAINS, shares="moved", given="moved"), "covariate"),
        (Findings("moved", "moved", "dropped", mixture=EXPLAINS, shares="moved"), "label"),
        (Findings("moved", "moved", "dropped", mixture=DOES_NOT, expected=True), "covariate"),
        (Findings("moved", "moved", "dropped", mixture=DOES_NOT, expected=False), "covariate and concept"),
        (Findings("moved", "steady", "dropped"), "covariate and concept"),
        (Findings("unknown", "unknown", "dropped"), "concept"),
        (Findings("unknown", "unknown", "held"), "unknown"),
    ],
)
def test_the_table(findings: Findings, named: str):
    """Inputs, outputs and performance name the kind, the mixture and the labels tell label from covariate shift.

    Bad data outdoes all.
    """
    assert kind(findings) == named
    assert kind(findings, problems=True) == "data quality"


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion on the loans stream."""
    return Stream(seed=32)


def seen(stream: Stream, drift: str, day: date, change=None) -> Seen:
    """What the step sees on ``day``, of a drift that set in with DRIFT_AT."""
    parts = []
    days = {}
    for number in range((day - START).days + 1):
        moment = START + timedelta(days=number)
        generated = stream.generated(moment, drift, DRIFT_AT)
        generated = change(generated) if change and moment >= DRIFT_AT else generated
        parts.append(
            generated.with_columns(
                version=pl.lit(1, pl.Int64),
                score=pl.Series(stream.scores(generated)),
                label_time=pl.col("event_time") + DELAY,
            )
        )
        days[moment] = profile_frame(parts[-1], FIELDS, SPEC)
    everything = pl.concat(parts)
    served = everything.drop("granted", "label_time")
    labels = everything.select("id", "label_time", label="granted")
    end = midnight(day + timedelta(days=1))
    known = performance.known(served, labels, end).filter(pl.col("label").is_not_null())
    counted = label_evidence.counted(served, labels, end - timedelta(days=1), DELAY)
    fresh = label_evidence.fresh(served, labels, end, DELAY, counted)
    return Seen(
        version=1,
        reference=stream.reference,
        window=days[day],
        features=compare(stream.reference, days[day], FIELDS, SPEC, PARAMS.drift, 1),
        labels=label_evidence.judge(fresh, 1, stream.reference.baseline, PARAMS.drift),
        days=days,
        fresh=fresh,
        known=known,
        slices=performance.by_slice(known, ["education"], stream.reference.baseline, PARAMS.drift, Binary(), {}),
    )


@pytest.mark.parametrize("drift", ["covariate", "label"])
def test_moved_inputs_are_told_apart_without_labels(stream, drift):
    """On the second drifted day, with no label of either day, covariate and label shift are named.

    They are named with the features and both days.
    """
    found = diagnose(seen(stream, drift, DRIFT_AT + timedelta(days=1)), PARAMS.drift)
    assert (found.kind, found.inputs, found.performance) == (drift, "moved", "unknown")
    assert (found.since, found.dates) == (DRIFT_AT, (DRIFT_AT, DRIFT_AT + timedelta(days=1)))
    assert "no labels have arrived" in found.why
    assert found.features[0].debiased_psi == max(one.debiased_psi for one in found.features)
    names = {one.feature for one in found.features}
    assert {"salary", "age"} <= names if drift == "covariate" else "score" in names


@pytest.mark.parametrize(
    ("drift", "performs"), [("none", "held"), ("covariate", "held"), ("label", "held"), ("concept", "dropped")]
)
def test_arrived_labels_complete_the_diagnosis(stream, drift, performs):
    """A week later the labels of the first drifted day are in.

    Each kind is named with its day, and concept drift with its slices.
    """
    found = diagnose(seen(stream, drift, DRIFT_AT + DELAY), PARAMS.drift)
    assert (found.kind, found.performance) == (drift, performs)
    assert found.since == (None if drift == "none" else DRIFT_AT)
    assert bool(found.dates) == (drift != "none")
    assert {one.field for one in found.slices} == ({"education"} if drift == "concept" else set())
    if drift == "label":
        assert (found.labels.shares, found.labels.score_given_class) == ("moved", "steady")
        assert found.mixture.shares[1] == pytest.approx(0.75, abs=0.1)


def test_concept_drift_beside_covariate_shift_is_told(stream):
    """Where inputs and labels moved the losses are more than calibrated scores expect.

    The same drop as expected is covariate shift alone.
    """
    turned = seen(
        stream,
        "covariate",
        DRIFT_AT + DELAY,
        lambda rows: rows.with_columns(granted=(1 - pl.col("granted")).cast(pl.Int8)),
    )
    assert look(turned, PARAMS.drift).expected is False
    assert diagnose(turned, PARAMS.drift).kind == "covariate and concept"
    # Rows near the boundary: harder, and known to be so.
    assert turned.fresh is not None
    unsure = turned.fresh.with_columns(score=pl.lit(0.5), label=pl.int_range(pl.len()) % 2)
    flat = replace(
        stream.reference,
        baseline={**stream.reference.baseline, "calibration": {"score": [0.5], "rate": [0.5], "gap_se": 0.01}},
    )
    found = diagnose(replace(turned, fresh=unsure, reference=flat, labels=DROPPED), PARAMS.drift)
    assert (found.kind, found.performance) == ("covariate", "dropped")
    assert "its own scores expect" in found.why


def test_bad_rows_are_a_diagnosis_of_their_own(stream):
    """A failed check of the rows is named as the cause, whatever moved with it, and no finer cause is looked for."""
    found = diagnose(replace(seen(stream, "covariate", DRIFT_AT), problems=("age: 10.0% missing",)), PARAMS.drift)
    assert (found.kind, found.mixture) == ("data quality", None)
    assert "age: 10.0% missing" in found.why


def test_too_few_rows_say_that_they_are(stream):
    """A thin window without labels is unknown, not none.

    With a drop of the metric it is concept drift, inputs not compared.
    """
    thin = replace(seen(stream, "none", START), features=(), thin=True)
    assert diagnose(thin, PARAMS.drift).kind == "unknown"
    found = diagnose(replace(thin, labels=DROPPED), PARAMS.drift)
    assert found.kind == "concept"
    assert "could not be compared" in found.why
    assert found.since is None


def test_a_standing_alarm_is_a_drop(stream):
    """Errors that grew slowly enough to pass every window, but not the e-CUSUM, are a drop all the same."""
    quiet = seen(stream, "none", START)
    assert look(quiet, PARAMS.drift).performance == "unknown"
    assert look(replace(quiet, log_e=10.0), PARAMS.drift).performance == "dropped"


def test_an_old_reference_still_names_what_it_can(stream):
    """With a reference from before there were classes and calibrations the table alone speaks.

    Inputs moved, covariate.
    """
    kept = {name: stream.reference.baseline[name] for name in ("rows", "errors", "error_rate", "loss", "loss_se")}
    found = diagnose(
        replace(seen(stream, "label", DRIFT_AT), reference=replace(stream.reference, baseline=kept)), PARAMS.drift
    )
    assert (found.kind, found.mixture, found.labels) == (
        "covariate",
        None,
        LabelMovements(shares="unknown", score_given_class="unknown"),
    )


def test_an_output_alone_is_label_shift(stream):
    """A score that moved while no input did is named with its day."""
    one = FeatureDrift(
        feature="score", psi=0.2, debiased_psi=0.2, ks=0.2, ks_error=0.0, p_value=0.0, drifted=True, severity="warn"
    )
    found = diagnose(replace(seen(stream, "none", START), features=(one,)), PARAMS.drift)
    assert (found.kind, found.inputs, found.outputs) == ("label", "steady", "moved")
    assert found.why.startswith("score moved since 1 Mar 2021, and no input did")


def test_where_nothing_was_seen_nothing_is_claimed():
    """Where there was nothing to look at, every answer is unknown, and the reason is told."""
    found = nothing_seen("no champion")
    assert (found.kind, found.why) == ("unknown", "no champion")
    assert {found.inputs, found.outputs, found.performance} == {"unknown"}


def test_windows_of_many_days_name_the_day(stream):
    """Days of a longer window are looked at one by one: a change in its middle has its date."""
    days = seen(stream, "covariate", DRIFT_AT + timedelta(days=2))
    week = merge(days.days.values(), SPEC.version)
    features = compare(stream.reference, week, FIELDS, SPEC, PARAMS.drift, 1)
    found = diagnose(replace(days, window=week, features=features), PARAMS.drift)
    assert (found.kind, found.since) == ("covariate", DRIFT_AT)
    assert list(found.dates) == [DRIFT_AT + timedelta(days=number) for number in range(3)]
