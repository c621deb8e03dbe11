"""Why a model goes stale: what moved, since when, and what kind of shift that is.

It never changes what the policy decides.

Three things are looked at: inputs, outputs (the score, the predicted class), and the metric on arrived labels.

    inputs   outputs   performance        kind
    moved    any       held or unknown    covariate, or label where the classes' shares explain the inputs
    moved    any       dropped            covariate, label, or covariate and concept (below)
    steady   moved     held or unknown    label
    steady   any       dropped            concept
    steady   steady    held or unknown    none (label, if the arrived labels' shares moved)
    unknown  any       dropped            concept: inputs could not be compared
    unknown  any       not dropped        unknown
    a failed data check                   data quality, whatever else is seen

Inputs that moved may be *label shift*: P(x | y) stays, P(y) moves. Then other shares of the classes explain all inputs
at once (mixture.py), and once labels of those days are in, their shares moved and P(score | y) did not.
Inputs that moved may take the metric with them: *covariate shift alone* is named if the rows' losses are what
their calibrated scores expected (calibration.py); otherwise the concept moved too.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.amounts import amount, spread
from pipelines.contracts import FeatureDrift
from pipelines.drift.labels.arrived import BINARY
from pipelines.drift.why.embeddings import KL_THRESHOLD
from pipelines.drift.why.findings import Findings, Seen, look
from pipelines.drift_report import Diagnosis, Embeddings, HitSlice, LabelMovements, MixtureShares, MovedFeature, Shift
from pipelines.feature_names import OUTPUTS, in_words, is_projection
from pipelines.fields import Target
from pipelines.moments import day
from pipelines.params import DriftParams


def diagnose(seen: Seen, params: DriftParams, target: Target = BINARY) -> Diagnosis:
    """What moved, since when, and what kind of shift that is.

    ``features`` are those that moved, strongest first; ``slices`` those whose metric dropped; ``dates`` the days
    outside the reference's range, and ``since`` the first day of the change (change.py), of the inputs, else of the
    outputs, else of the errors. ``mixture`` holds the classes' shares that were found, ``labels`` what arrived labels
    say of them; ``embeddings`` the KL of a text's projections (:func:`projected`), which decides nothing.
    """
    moved = [feature for feature in seen.features if feature.drifted]
    inputs = [feature.feature for feature in moved if feature.feature not in OUTPUTS]
    findings = look(seen, params, target)
    found = kind(findings, problems=bool(seen.problems))
    mixture = findings.mixture
    shares = None if mixture is None else MixtureShares(shares=mixture.shares, unexplained=mixture.unexplained)
    hit = (one for one in seen.slices if one.dropped and one.drop is not None)
    return Diagnosis(
        kind=found,
        why=sentence(found, findings, inputs or [feature.feature for feature in moved], seen),
        inputs=findings.inputs,
        outputs=findings.outputs,
        performance=findings.performance,
        features=tuple(
            MovedFeature(feature=one.feature, debiased_psi=one.debiased_psi, severity=one.severity) for one in moved
        ),
        slices=tuple(HitSlice(field=one.field, value=one.value, rows=one.rows, drop=one.drop) for one in hit),
        dates=findings.dates,
        since=findings.since,
        mixture=shares,
        labels=LabelMovements(shares=findings.shares, score_given_class=findings.given),
        embeddings=projected(seen.features),
    )


def projected(features: Sequence[FeatureDrift]) -> Embeddings | None:
    """How far a text's embeddings moved, by the KL of its projections; None without any.

    About ``(bins - 1) / 2 (1/m + 1/n)`` without drift. Above ``threshold`` the embeddings moved.
    """
    found = [feature.kl for feature in features if is_projection(feature.feature)]
    if not found:
        return None
    return Embeddings(kl=round(sum(found) / len(found), 6), most=round(max(found), 6), threshold=KL_THRESHOLD)


def nothing_seen(why: str) -> Diagnosis:
    """The diagnosis where nothing could be looked at."""
    return Diagnosis(why=why, performance="unknown")


def kind(findings: Findings, *, problems: bool = False) -> Shift:
    """The kind of shift by the table above.

    >>> kind(Findings("steady", "steady", "dropped")), kind(Findings("moved", "moved", "dropped", expected=True))
    ('concept', 'covariate')
    """
    if problems:
        return "data quality"
    by_shares = (
        findings.mixture is not None
        and findings.mixture.explains
        and findings.given != "moved"
        and findings.shares != "steady"
    )
    if findings.inputs == "moved":
        if by_shares:
            return "label"
        return "covariate and concept" if findings.performance == "dropped" and not findings.expected else "covariate"
    if findings.performance == "dropped":
        return "concept"
    if findings.inputs == "unknown":
        return "unknown"
    return "label" if findings.outputs == "moved" or findings.shares == "moved" else "none"


def sentence(found: Shift, findings: Findings, names: Sequence[str], seen: Seen) -> str:
    """Why the shift is of this kind, for people; ``names`` are the features that moved."""
    when = "" if findings.since is None else f" since {day(findings.since)}"
    what = ", ".join(map(in_words, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    drop = seen.labels.drop
    if drop is None:
        metric = "no labels have arrived that could say how well the model does"
    elif findings.performance == "dropped":
        metric = f"the {seen.labels.loss} is above the holdout's by {spread(drop)}"
    else:
        metric = f"the {seen.labels.loss} is within what the holdout promised ({amount(drop.value, signed=True)})"
    mixture = findings.mixture
    if found == "data quality":
        return f"the rows themselves are wrong: {'; '.join(seen.problems)}"
    if found == "none":
        return f"nothing moved; {metric}"
    if found == "unknown":
        return f"too few rows to compare the inputs; {metric}"
    if found == "concept":
        seen_as = "inputs are what they were" if findings.inputs == "steady" else "inputs could not be compared"
        target = f"; {seen.shares_told} moved" if findings.shares == "moved" else ""
        return f"{seen_as}, but {metric}{when}: the same inputs now have other labels{target}"
    if found == "label":
        arrived = "; the labels that arrived say so too" if what and findings.shares == "moved" else ""
        if mixture is not None and mixture.explains:
            shares = f"the classes' shares change (to {_percent(mixture.shares)})"
            return f"{what} moved{when} as inputs do when only {shares}{arrived}; {metric}"
        return f"{what or seen.shares_told} moved{when}, and no input did{arrived}; {metric}"
    odd = (
        ""
        if mixture is None or not mixture.unexplained
        else f" in a way that no shares of the classes explain ({', '.join(map(in_words, mixture.unexplained[:3]))})"
    )
    if found == "covariate":
        as_told = ", which is what its own scores expect of such inputs" if findings.expected else ""
        return f"{what} moved{when}{odd}; {metric}{as_told}"
    more = (
        "more than such inputs explain"
        if findings.expected is False
        else "and whether the inputs explain that cannot be told"
    )
    return f"{what} moved{when}{odd}, and {metric}, {more}: the same inputs have other labels too"


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares[:4]) + (", ..." if len(shares) > 4 else "")
