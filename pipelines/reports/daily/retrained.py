"""What the daily page says of the last retraining: did it help?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pipelines.amounts import amount
from pipelines.contracts import Evidence, Release
from pipelines.drift_report import Measure
from pipelines.moments import day
from pipelines.reports.daily.figures import count, lift, window
from pipelines.reports.daily.view import Judged, View
from pipelines.reports.daily.words import ASKED_BY, answered_by, rolling


def helped(view: View) -> str:
    """Did retraining help?"""
    return " ".join(_helped(view))


def _helped(view: View) -> Iterator[str]:
    if view.report.action == "retrain" and answered_by(view) is None:
        yield "Not known yet: the training that this window asked for had no verdict when this page was made."
    if not view.verdicts:
        yield "No training has had a verdict so far."
        return
    last = view.verdicts[-1]
    verdict = last.verdict
    asked = f"the training of {day(last.as_of)}, asked for {ASKED_BY[last.trigger]},"
    if verdict.decision == "promote":
        release = _release_of(view, last)
        served = "was not released"
        if release is not None:
            served = f"v{release.champion} has served since {day(release.as_of)}"
        first = "Yes: "
        if last.trigger == "initial":
            first = "Nothing was retrained yet: "
        yield f"{first}{asked} {_improved(verdict.evidence, view.report.measure)}; {served}."
        if release is not None:
            yield from _in_service(view, release)
    elif verdict.decision == "reject":
        yield f"No: {asked} was rejected, and the champion stayed: {verdict.reason}."
    else:
        yield f"Cannot be told: {asked} was inconclusive, and the champion stayed: {verdict.reason}."


def _release_of(view: View, judged: Judged) -> Release | None:
    """The release that a verdict led to, if there was one."""
    for release in view.releases:
        if release.verdict_hash == judged.hash or release.as_of == judged.as_of:
            return release
    return None


def _improved(evidence: Evidence, measure: Measure) -> str:
    """By how much a candidate was better, and than what."""
    if evidence.lift is None:
        return "passed"
    against = "the base rate"
    if evidence.opponent == "champion":
        against = "the champion"
    return f"improved {lift(evidence, measure)} over {against} on {count(evidence.n)} held-out rows"


def _in_service(view: View, release: Release) -> Iterator[str]:
    """The metric of the new version beside that of the one before it, on labels."""
    until = release.as_of + timedelta(days=1)
    known = [(one, found) for one in rolling(view) if (found := one.main) and one.labelled >= view.policy.min_rows]
    now = [one for one in known if one[0].version == release.champion]
    before = [one for one in known if one[0].version != release.champion and one[0].end <= until]
    measure = view.report.measure
    if now and before:
        pair = ((*now[-1], "its"), (*before[-1], f"v{before[-1][0].version}'s"))
        new, old = (
            f"{amount(found.value)} {measure.unit} in {whose} last labelled window ({window(one.end, view.kind)})"
            for one, found, whose in pair
        )
        yield f"In service: {measure.metric} {new}, after {old}."
