"""The daily page's headline, and the words that its sentences share."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import amounts
from pipelines.arms import WHOLE
from pipelines.contracts import ELSEWHERE, Decision, Release, Trigger
from pipelines.drift_report import UNJUDGED, Action, DriftReport, Held, State, WindowFigures
from pipelines.reports.daily.view import Judged, View

ASKED_BY: dict[Trigger, str] = {
    "initial": "as the first one",
    "schedule": "by the schedule",
    "drift": "because of drift",
    "performance": "because the labels told of more errors",
    "headroom": "because a probe of newer rows did better by more than a retraining costs",
    "volume": "because enough new labels had come",
    "manual": "by a person",
}
OUTCOMES: dict[Decision, str] = {
    "promote": "promoted",
    "reject": "rejected",
    "inconclusive": "neither better nor worse beyond doubt",
}
STATES = {
    State.NO_CHAMPION: "no model serves yet",
    State.NOT_SERVED: "nothing was served yet",
    State.STABLE: "nothing is wrong",
    State.WATCH: "something moved once; it is watched",
    State.CONFIRMED: "there is reason to retrain; the retraining waits",
    State.RETRAINING: "a retraining was asked for",
    State.COOLDOWN: "just retrained: nothing is done for a while",
    State.BLOCKED_DATA_QUALITY: "the data are wrong: nothing is decided",
}
MOVES: dict[str, str] = {
    "promote": "promotion",
    "open": "on trial",
    "advance": "a higher share",
    "hold": "held",
    "resume": "goes on",
    "abort": "taken back",
    "settle": "its soak is over",
}
"""What a row of the releases did, where another word says it better."""
DONE: dict[Action, str] = {"retrain": "a retraining was started", "alert": "a person should look"}


def performance(view: View) -> Held:
    """Dropped, held or unknown: the diagnosis' word, else that of the labels alone."""
    report = view.report
    if report.diagnosis.performance is not None:
        return report.diagnosis.performance
    drop = report.labels.drop
    if report.policy.alarmed or (drop is not None and drop.low > view.policy.min_metric_drop):
        return "dropped"
    if drop is not None:
        return "held"
    return "unknown"


def rolling(view: View) -> list[WindowFigures]:
    """The metric of every version in every window that a report spoke of, oldest first.

    The newest report knows best. Rows that no version of ours answered are shown only if somebody else's answers to
    them can be measured: the others have labels, and no answer.
    """
    found = {(one.end, one.version): one for past in view.history for one in past.report.performance.rolling}
    return [one for _, one in sorted(found.items()) if one.version != ELSEWHERE or one.main is not None]


def moved(row: Release, stages: Sequence[Release]) -> tuple[int, str]:
    """The version that a row of the releases is about, and what became of it; ``stages`` are the rows of rollouts."""
    said = MOVES.get(row.action, row.action)
    if row.challenger is not None:
        share = "in shadow" if row.stage == "shadow" else f"answers {amounts.share(row.weight / WHOLE)}"
        return row.challenger, f"{said}: {share}"
    if row.action == "abort":
        tried = [one.challenger for one in stages if one.seq < row.seq and one.challenger is not None]
        return tried[-1] if tried else row.champion, said
    return row.champion, said


def headline(view: View) -> str:
    """What is the matter, in one line."""
    report = view.report
    if report.state == State.NO_CHAMPION:
        return "No model serves yet"
    if report.state == State.NOT_SERVED:
        return "Nothing was served yet in this window"
    if report.state == State.BLOCKED_DATA_QUALITY:
        return "The data are wrong: a person should look before anything is decided"
    if report.quality.unread:
        return "Rows of this window cannot be read yet: it is judged again when they can"
    if not report.current_rows:
        return "Nothing was served in this window"
    what = _state_of_model(report, performance(view))
    done = _done(view)
    if done:
        return f"{what}: {done}"
    return what


def _state_of_model(report: DriftReport, known: Held) -> str:
    """What moved, and whether the model holds; ``known`` is what the labels say of it."""
    if known == "dropped":
        return "The model got worse"
    moved = [one.feature for one in report.features if one.drifted]
    if not moved and known == "held":
        return "Nothing moved, and the model holds"
    if not moved:
        return f"Nothing moved; {_silent(report)}"
    inputs = "The model's answers moved"
    if not {"score", "prediction"}.issuperset(moved):
        inputs = "The inputs moved"
    if known == "held":
        return f"{inputs}; the model holds"
    return f"{inputs}; labels cannot say yet whether the model still holds"


def _done(view: View) -> str | None:
    """What was done about it, if something was."""
    answered, report = answered_by(view), view.report
    if answered is None and report.action == "retrain" and report.policy.trigger == "headroom":
        return "newer rows would do better, and a retraining was started"
    if answered is None:
        return DONE.get(report.action)
    decision = answered.verdict.decision
    if decision == "promote":
        return "it was retrained, and the gate let the candidate through"
    return f"it was retrained, and the candidate was {OUTCOMES[decision]}"


def _silent(report: DriftReport) -> str:
    """Why labels say nothing of the model."""
    if report.labels.rows or report.labels.young:
        return "too few labels count yet to say whether the model holds"
    return "labels have not arrived yet"


def answered_by(view: View) -> Judged | None:
    """The verdict of the training that this very window asked for, once there is one."""
    if view.report.action != "retrain":
        return None
    return next((judged for judged in view.verdicts if judged.as_of == view.as_of), None)


def tone(view: View) -> str:
    """``good``, ``watch``, ``bad`` or ``none``: how the headline is coloured."""
    report = view.report
    if report.state in UNJUDGED:
        return "none"
    if report.state == State.BLOCKED_DATA_QUALITY or performance(view) == "dropped":
        return "bad"
    if report.action != "none" or report.state in {State.WATCH, State.CONFIRMED} or not report.current_rows:
        return "watch"
    return "good"
