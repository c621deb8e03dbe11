"""What the daily page says of the labels that have arrived: did the model get worse, and how many rows have one."""

from __future__ import annotations

from pipelines.amounts import spread
from pipelines.contracts import Interval
from pipelines.drift_report import DriftReport
from pipelines.reports.daily.figures import count
from pipelines.reports.daily.view import View
from pipelines.reports.daily.words import performance


def worse(view: View) -> str:
    """Did the model get worse?"""
    report = view.report
    if report.model_version is None:
        return "There is no model yet whose answers could be judged."
    if report.labels.drop is not None:
        return _measured(view, report.labels.drop)
    if performance(view) == "dropped":
        return (
            f"Yes. The sequential test of v{report.model_version}'s {_tested(report)} has reached its threshold "
            f"({view.policy.cusum_threshold:g}). {coverage(view)}{corrected(report)}"
        )
    return f"Not known yet. {coverage(view)}{corrected(report)}{_estimated(report)}"


def _measured(view: View, drop: Interval) -> str:
    """By how much the loss rose, where labels tell it."""
    report = view.report
    least = view.policy.min_metric_drop
    by = spread(drop, report.measure.loss_unit, signed=True)
    told = (
        f"On {count(report.labels.rows)} rows answered by v{report.model_version} whose labels count since the last "
        f"window, the {report.measure.loss} differs from its holdout's by {by}; "
        f"a rise surely above {least:g} counts as worse."
    )
    if performance(view) != "dropped":
        return f"No sign of it. {told}{corrected(report)}"
    if drop.low <= least:
        told += (
            f" That alone proves nothing, but the sequential test of the {_tested(report)} has reached its threshold "
            f"({view.policy.cusum_threshold:g})."
        )
    return f"Yes. {told}{corrected(report)}"


def _tested(report: DriftReport) -> str:
    """What the sequential test is of."""
    return "error rate" if report.measure.estimable else "capped squared errors"


def _estimated(report: DriftReport) -> str:
    """What the metric would be if only the inputs had moved, where that could be estimated."""
    guess = report.performance.estimate
    if not report.measure.estimable:
        return " Nothing is estimated without labels: a predicted number does not say how sure it is."
    if guess is None:
        return ""
    return (
        f" Estimated without labels, on {count(guess.rows)} rows of this window: log-loss {guess.log_loss:.3f} "
        f"({guess.low:.3f} to {guess.high:.3f}) nats, if only the inputs moved."
    )


def corrected(report: DriftReport) -> str:
    """What labels that were counted before and have changed since would change.

    They are told of, and counted no second time.
    """
    found = report.labels.corrections
    if not found.rows:
        return ""
    than = "fewer"
    if found.errors >= 0:
        than = "more"
    by_them = f": by them the model made {abs(found.errors)} {than} errors. "
    if not report.measure.estimable:
        by_them = ". "
    return (
        f" {count(found.rows)} labels that were counted before have been corrected since the last window{by_them}"
        "They are in the figures by window and in trainings; "
        "the sequential test goes on with what it counted."
    )


def coverage(view: View) -> str:
    """How many of the window's rows have a label, and when labels come."""
    report = view.report
    come = f"labels take about {view.label_delay_days:g} days here"
    if report.quality.unread:
        return f"{count(report.quality.unread)} rows of the window cannot be read yet; {come}."
    if not report.current_rows:
        return f"No rows were served in this window; {come}."
    if report.labels.young:
        come += f"; {count(report.labels.young)} have come sooner, and count once their rows are that old"
    rows = f"of the window's {count(report.current_rows)} rows"
    share = _share(report)
    if not share:
        return f"No {rows} has a label so far; {come}."
    return f"{share:.0%} {rows} have a label so far; {come}."


def _share(report: DriftReport) -> float | None:
    """The share of the window's rows that have a label; None: not known."""
    own = [one for one in report.performance.rolling if one.end == report.window.end and one.rows]
    if own:
        return sum(one.labelled for one in own) / sum(one.rows for one in own)
    return report.labels.labelled.get(report.window.end)
