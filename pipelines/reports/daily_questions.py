"""The daily page's four questions, answered: did the model get worse, why, did retraining help, what now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from pipelines.drift_report import UNJUDGED, State
from pipelines.moments import parse_utc as moment
from pipelines.reports.daily_words import ASKED_BY, OUTCOMES, View, answered_by, performance, rolling
from pipelines.reports.figures import count, day, interval, window

UNJUDGED_NOW = {
    State.NO_CHAMPION: "Run a training: the first candidate that beats the base rate becomes the champion.",
    State.NOT_SERVED: "Nothing is to be done: the first window with served rows is the first that is judged.",
}


def worse(view: View) -> str:
    """Did the model get worse?"""
    report = view["report"]
    labels = view["report"]["labels"]
    policy = view["policy"]
    version = f"v{report['model_version']}"
    drop = labels.get("drop")
    known = performance(view)
    if report["model_version"] is None:
        return "There is no model yet whose answers could be judged."
    rows = f"{count(labels.get('rows', 0))} rows answered by {version} whose labels count since the last window"
    threshold = f"{policy['cusum_threshold']:g}"
    if drop:
        told = (
            f"On {rows}, the log-loss is {interval(drop)} nats against its holdout's; "
            f"a rise surely above {policy['min_metric_drop']:g} counts as worse."
        )
        if known != "dropped":
            return f"No sign of it. {told}{corrected(view)}"
        if drop["low"] <= policy["min_metric_drop"]:
            told += (
                " That alone proves nothing, but the sequential test of the error rate has reached its threshold "
                f"({threshold})."
            )
        return f"Yes. {told}{corrected(view)}"
    if known == "dropped":
        return (
            f"Yes. The sequential test of {version}'s error rate has reached its threshold ({threshold}). "
            f"{coverage(view)}{corrected(view)}"
        )
    return f"Not known yet. {coverage(view)}{corrected(view)}{_estimated(report)}"


def _estimated(report: Mapping[str, Any]) -> str:
    """What the metric would be if only the inputs had moved, where that could be estimated."""
    guess = report["performance"].get("estimate")
    if not guess or guess.get("log_loss") is None:
        return ""
    value = interval({"value": guess["log_loss"], "low": guess["low"], "high": guess["high"]}, sign=False)
    return (
        f" Estimated without labels, on {count(guess['rows'])} rows of this window: log-loss {value} nats, "
        "if only the inputs moved."
    )


def corrected(view: View) -> str:
    """What labels that were counted before and have changed since would change.

    They are told of, and counted no second time.
    """
    found = view["report"]["labels"].get("corrections", {})
    if not found.get("rows"):
        return ""
    than = "fewer"
    if found["errors"] >= 0:
        than = "more"
    return (
        f" {count(found['rows'])} labels that were counted before have been corrected since the last window: "
        f"by them the model made {abs(found['errors'])} {than} errors. "
        "They are in the figures by window and in trainings; "
        "the sequential test goes on with what it counted."
    )


def coverage(view: View) -> str:
    """How many of the window's rows have a label, and when labels come."""
    report = view["report"]
    share = _share(view)
    come = f"labels take about {view['label_delay_days']:g} days here"
    if report["quality"].get("unread"):
        return f"{count(report['quality']['unread'])} rows of the window cannot be read yet; {come}."
    if not report["current_rows"]:
        return f"No rows were served in this window; {come}."
    young = report["labels"].get("young", 0)
    if young:
        come += f"; {count(young)} have come sooner, and count once their rows are that old"
    rows = f"of the window's {count(report['current_rows'])} rows"
    if not share:
        return f"No {rows} has a label so far; {come}."
    return f"{share:.0%} {rows} have a label so far; {come}."


def _share(view: View) -> float | None:
    report = view["report"]
    end = moment(report["window"]["end"])
    own = [one for one in report["performance"].get("rolling", []) if moment(one["end"]) == end and one["rows"]]
    if own:
        return float(sum(one["labelled"] for one in own) / sum(one["rows"] for one in own))
    return next((share for key, share in report["labels"].get("labelled", {}).items() if moment(key) == end), None)


def why(view: View) -> str:
    """Why: the diagnosis' sentence, and the slices that were hit worst."""
    report = view["report"]
    if report["state"] == State.NO_CHAMPION:
        rows = f"{count(report['current_rows'])} rows were served in this window"
        return f"{rows}; nothing can be compared before a first model serves."
    if report["state"] == State.NOT_SERVED:
        return f"Nothing is compared: {report['reason']}."
    said = report["diagnosis"].get("why") or _moved(report)
    # A field's name stays as it is declared.
    if not any(said.startswith(one["feature"]) for one in report["features"]):
        said = said[0].upper() + said[1:]
    said += "."
    hit = sorted(report["diagnosis"].get("slices", []), key=lambda one: -one["drop"]["value"])[:3]
    if not hit:
        return said
    worst = "; ".join(
        f"{one['field']} {one['value']}, {interval(one['drop'])} nats on {count(one['rows'])} rows" for one in hit
    )
    return f"{said} Hit worst: {worst}."


def _moved(report: Mapping[str, Any]) -> str:
    """The features that moved, three of them by name; or that none did."""
    moved = [one["feature"] for one in report["features"] if one["drifted"]]
    if len(moved) > 3:
        return f"{', '.join(moved[:3])} and {len(moved) - 3} more moved"
    if moved:
        return f"{', '.join(moved)} moved"
    if report["features"]:
        return "nothing moved"
    return "too few rows to compare"


def helped(view: View) -> str:
    """Did retraining help?"""
    told = list(_helped(view))
    return " ".join(told)


def _helped(view: View) -> Iterator[str]:
    report = view["report"]
    verdicts = view["verdicts"]
    if report["action"] == "retrain" and answered_by(view) is None:
        yield "Not known yet: the training that this window asked for had no verdict when this page was made."
    if not verdicts:
        yield "No training has had a verdict so far."
        return
    last = verdicts[-1]
    verdict = last["verdict"]
    asked = f"the training of {day(last['as_of'])}, asked for {ASKED_BY.get(last['trigger'], last['trigger'])},"
    if verdict["decision"] == "promote":
        release = _release_of(view, last)
        served = "was not released"
        if release is not None:
            served = f"v{release['champion']} has served since {day(release['as_of'])}"
        first = "Yes: "
        if last["trigger"] == "initial":
            first = "Nothing was retrained yet: "
        yield f"{first}{asked} {_improved(verdict['evidence'])}; {served}."
        yield from _in_service(view, release)
    elif verdict["decision"] == "reject":
        yield f"No: {asked} was rejected, and the champion stayed: {verdict['reason']}."
    else:
        yield f"Cannot be told: {asked} was inconclusive, and the champion stayed: {verdict['reason']}."


def _release_of(view: View, verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The release that a verdict led to, if there was one."""
    for one in view["releases"]:
        if one["verdict_hash"] == verdict["hash"] or moment(one["as_of"]) == moment(verdict["as_of"]):
            found: Mapping[str, Any] = one
            return found
    return None


def _improved(evidence: Mapping[str, Any]) -> str:
    """By how much a candidate was better, and than what."""
    lift = evidence["lift"]
    if not lift:
        return "passed"
    against = "the base rate"
    if evidence["opponent"] == "champion":
        against = "the champion"
    metric = evidence["metric"].replace("_", "-")
    return f"improved {metric} by {interval(lift)} nats over {against} on {count(evidence['n'])} held-out rows"


def _in_service(view: View, release: Mapping[str, Any] | None) -> Iterator[str]:
    """The metric of the new version beside that of the one before it, on labels."""
    known = [
        one
        for one in rolling(view)
        if one.get("log_loss") is not None and one["labelled"] >= view["policy"]["min_rows"]
    ]
    if release is None or not known:
        return
    now = [one for one in known if one["version"] == release["champion"]]
    before = [
        one
        for one in known
        if one["version"] != release["champion"] and moment(one["end"]) <= moment(release["as_of"]) + timedelta(days=1)
    ]
    if now and before:
        pair = ((now[-1], "its"), (before[-1], f"v{before[-1]['version']}'s"))
        new, old = (
            f"{one['log_loss']:.3f} nats in {whose} last labelled window ({window(one['end'], view['kind'])})"
            for one, whose in pair
        )
        yield f"In service: log-loss {new}, after {old}."


def now(view: View) -> str:
    """What now?"""
    report = view["report"]
    state = report["state"]
    if state in UNJUDGED:
        return UNJUDGED_NOW[state]
    if state == State.BLOCKED_DATA_QUALITY:
        wrong = "; ".join(problem["message"] for problem in report["quality"]["problems"]) or report["reason"]
        return (
            f"Somebody must look at the rows: {wrong}. Nothing is retrained on them; a sound window unblocks by itself."
        )
    answered = answered_by(view)
    if answered is not None:
        decision = answered["verdict"]["decision"]
        after = "The champion goes on; the policy waits longer before it tries again"
        if decision == "promote":
            after = "Watch whether it holds in service"
        return (
            f"The training of episode {report['episode']} has ended: its candidate was {OUTCOMES[decision]}. {after}."
        )
    if report["action"] == "retrain":
        return (
            f"A training runs for episode {report['episode']}: {report['reason']}. "
            "Its candidate serves only if the gate finds it better."
        )
    return _by_state(report, view["policy"])


def _by_state(report: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """What the policy waits for, where this window asked for nothing."""
    state = report["state"]
    if state == State.CONFIRMED:
        return f"Nothing is retrained yet: {report['reason']}."
    if state == State.COOLDOWN:
        until = report["policy"].get("cooldown_until")
        if until:
            return f"Nothing is done until {day(until)}: {report['reason']}."
        return f"Nothing is done: {report['reason']}."
    if state == State.RETRAINING:
        return f"Wait for the training: {report['reason']}."
    if state == State.WATCH:
        return (
            f"Wait: {report['reason']}. A retraining needs it in {policy['confirm']} of {policy['out_of']} windows, "
            "or labels that show a drop."
        )
    return (
        f"Nothing is to be done, the policy is at rest ({report['reason'] or 'no reason to move'}). "
        "The next window is looked at as ever."
    )


def answers(view: View) -> list[tuple[str, str]]:
    """The four questions of the page's beginning, answered."""
    return [
        ("Did the model get worse?", worse(view)),
        ("Why?", why(view)),
        ("Did retraining help?", helped(view)),
        ("What now?", now(view)),
    ]
