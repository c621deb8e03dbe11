"""The daily page's four questions, answered: did the model get worse, why, did retraining help, what now."""

from __future__ import annotations

from pipelines.drift_report import UNJUDGED, DriftReport, State
from pipelines.moments import day
from pipelines.params import DriftParams
from pipelines.reports.daily.figures import count, interval
from pipelines.reports.daily.headroom import gain
from pipelines.reports.daily.labels import worse
from pipelines.reports.daily.retrained import helped
from pipelines.reports.daily.view import View
from pipelines.reports.daily.words import OUTCOMES, answered_by

UNJUDGED_NOW = {
    State.NO_CHAMPION: "Run a training: the first candidate that beats the base rate becomes the champion.",
    State.NOT_SERVED: "Nothing is to be done: the first window with served rows is the first that is judged.",
}


def why(report: DriftReport) -> str:
    """Why: the diagnosis' sentence, and the slices that were hit worst."""
    if report.state == State.NO_CHAMPION:
        rows = f"{count(report.current_rows)} rows were served in this window"
        return f"{rows}; nothing can be compared before a first model serves."
    if report.state == State.NOT_SERVED:
        return f"Nothing is compared: {report.reason}."
    said = report.diagnosis.why or _moved(report)
    # A field's name stays as it is declared.
    if not any(said.startswith(one.feature) for one in report.features):
        said = said[0].upper() + said[1:]
    said += "."
    hit = sorted(report.diagnosis.slices, key=lambda one: -one.drop.value)[:3]
    if not hit:
        return said
    unit = report.measure.loss_unit
    worst = "; ".join(f"{one.field} {one.value}, {interval(one.drop)} {unit} on {count(one.rows)} rows" for one in hit)
    return f"{said} Hit worst: {worst}."


def _moved(report: DriftReport) -> str:
    """The features that moved, three of them by name; or that none did."""
    moved = [one.feature for one in report.features if one.drifted]
    if len(moved) > 3:
        return f"{', '.join(moved[:3])} and {len(moved) - 3} more moved"
    if moved:
        return f"{', '.join(moved)} moved"
    if report.features:
        return "nothing moved"
    return "too few rows to compare"


def now(view: View) -> str:
    """What now?"""
    report = view.report
    if report.state in UNJUDGED:
        return UNJUDGED_NOW[report.state]
    if report.state == State.BLOCKED_DATA_QUALITY:
        wrong = "; ".join(problem.message for problem in report.quality.problems) or report.reason
        return (
            f"Somebody must look at the rows: {wrong}. Nothing is retrained on them; a sound window unblocks by itself."
        )
    answered = answered_by(view)
    if answered is not None:
        decision = answered.verdict.decision
        after = "The champion goes on; the policy waits longer before it tries again"
        if decision == "promote":
            after = "Watch whether it holds in service"
        return f"The training of episode {report.episode} has ended: its candidate was {OUTCOMES[decision]}. {after}."
    if report.action == "retrain":
        return (
            f"A training runs for episode {report.episode}: {report.reason}. "
            "Its candidate serves only if the gate finds it better."
        )
    return _by_state(report, view.policy)


def _by_state(report: DriftReport, policy: DriftParams) -> str:
    """What the policy waits for, where this window asked for nothing."""
    if report.state == State.CONFIRMED:
        return f"Nothing is retrained yet: {report.reason}."
    if report.state == State.COOLDOWN:
        until, why = report.policy.cooldown_until, report.reason
        if report.policy.rule == "cooling":
            why = "it is the cooldown after the last retraining"
        return f"Nothing is done{'' if until is None else f' until {day(until)}'}: {why}."
    if report.state == State.RETRAINING:
        return f"Wait for the training: {report.reason}."
    if report.state == State.WATCH:
        gained = ", or a gain above its price" if "headroom" in policy.triggers else ""
        return (
            f"Wait: {report.reason}. A retraining needs it in {policy.confirm} of {policy.out_of} windows, "
            f"or labels that show a drop{gained}."
        )
    rest = (
        f"Nothing is to be done, the policy is at rest ({report.reason or 'no reason to move'}). "
        "The next window is looked at as ever."
    )
    if report.headroom.decides is None:
        return rest
    return f"{rest} {gain(report.headroom)}"


def answers(view: View) -> list[tuple[str, str]]:
    """The four questions of the page's beginning, answered."""
    return [
        ("Did the model get worse?", worse(view)),
        ("Why?", why(view.report)),
        ("Did retraining help?", helped(view)),
        ("What now?", now(view)),
    ]
