"""The daily page's sentences: what a reader who has never seen the system should know first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from pipelines.contracts import UNJUDGED
from pipelines.moments import parse_utc as moment

ASKED_BY = {
    "initial": "as the first one",
    "schedule": "by the schedule",
    "drift": "because of drift",
    "performance": "because the labels told of more errors",
    "volume": "because enough new labels had come",
    "manual": "by a person",
}
OUTCOMES = {"promote": "promoted", "reject": "rejected", "inconclusive": "neither better nor worse beyond doubt"}
STATES = {
    "NO_CHAMPION": "no model serves yet",
    "NOT_SERVED": "nothing was served yet",
    "STABLE": "nothing is wrong",
    "WATCH": "something moved once; it is watched",
    "CONFIRMED": "drift is confirmed; the retraining waits",
    "RETRAINING": "a retraining was asked for",
    "COOLDOWN": "just retrained: nothing is done for a while",
    "BLOCKED_DATA_QUALITY": "the data are wrong: nothing is decided",
}
View = Mapping[str, Any]


def day(text: str) -> str:
    """A date for people.

    >>> day("2020-06-04T00:00:00Z")
    '4 Jun 2020'
    """
    found = moment(text)
    return f"{found.day} {found:%b %Y}"


def window(end: str, kind: str) -> str:
    """The name of the window that ends at ``end``.

    >>> window("2015-10-01T00:00:00Z", "quarter"), window("2009-05-01T00:00:00Z", "month"), window("2020-06-05T00:00:00Z", "day")
    ('Q3 2015', 'April 2009', '4 Jun 2020')
    """
    last = moment(end) - timedelta(microseconds=1)
    if kind == "quarter":
        return f"Q{(last.month + 2) // 3} {last.year}"
    if kind == "month":
        return f"{last:%B %Y}"
    return day(last.isoformat()) if kind == "day" else f"week to {day(last.isoformat())}"


def count(number: float) -> str:
    """A number of rows.

    >>> count(12345)
    '12,345'
    """
    return f"{number:,.0f}"


def psi(value: float | None) -> str:
    """A PSI in as many digits as mean something; ``-`` for none, 0 for one that is below its null expectation.

    >>> psi(0.0312), psi(17.94), psi(-0.004), psi(None)
    ('0.031', '18', '0', '-')
    """
    if value is None:
        return "-"
    return "0" if value <= 0 else f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def quantity(value: float) -> str:
    """A value in a field's own units.

    >>> quantity(52345.6), quantity(0.51234), quantity(5228.1), quantity(0.0)
    ('52,346', '0.512', '5,228', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.3g}"


def interval(found: Mapping[str, Any], *, sign: bool = True) -> str:
    """A figure with its interval.

    >>> interval({"value": 0.47, "low": 0.2287, "high": 0.71})
    '+0.470 (+0.229 to +0.710)'
    """
    form = "+.3f" if sign else ".3f"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def performance(view: View) -> str:
    """Dropped, held or unknown: the diagnosis' word, else that of the labels alone."""
    report = view["report"]
    said = report["diagnosis"].get("performance")
    if said:
        return str(said)
    drop = report["labels"].get("drop")
    if report["policy"].get("alarmed") or (drop and drop["low"] > view["policy"]["min_metric_drop"]):
        return "dropped"
    return "held" if drop else "unknown"


def rolling(view: View) -> list[dict[str, Any]]:
    """The metric of every version in every window that a report spoke of, oldest first; the newest report knows best."""
    found = {
        (one["end"], one["version"]): one
        for report in view["history"]
        for one in report["performance"].get("rolling", [])
    }
    return [found[key] for key in sorted(found)]


def headline(view: View) -> str:
    """What is the matter, in one line."""
    report = view["report"]
    state = report["state"]
    moved = [one for one in report["features"] if one["drifted"]]
    if state == "NO_CHAMPION":
        return "No model serves yet"
    if state == "NOT_SERVED":
        return "Nothing was served yet in this window"
    if state == "BLOCKED_DATA_QUALITY":
        return "The data are wrong: a person should look before anything is decided"
    if report["quality"].get("unread"):
        return "Rows of this window cannot be read yet: it is judged again when they can"
    if not report["current_rows"]:
        return "Nothing was served in this window"
    known = performance(view)
    inputs = (
        "The inputs moved"
        if any(one["feature"] not in {"score", "prediction"} for one in moved)
        else "The model's answers moved"
    )
    if known == "dropped":
        what = "The model got worse"
    elif moved:
        what = (
            f"{inputs}; the model holds"
            if known == "held"
            else f"{inputs}; labels cannot say yet whether the model still holds"
        )
    else:
        what = "Nothing moved, and the model holds" if known == "held" else f"Nothing moved; {_silent(report)}"
    done = {"retrain": "a retraining was started", "alert": "a person should look"}.get(report["action"])
    answered = _answered(view)
    if answered is not None:
        promoted = answered["verdict"]["decision"] == "promote"
        done = (
            "it was retrained, and the gate let the candidate through"
            if promoted
            else f"it was retrained, and the candidate was {OUTCOMES[answered['verdict']['decision']]}"
        )
    return what + (f": {done}" if done else "")


def _silent(report: Mapping[str, Any]) -> str:
    """Why labels say nothing of the model."""
    if report["labels"].get("rows") or report["labels"].get("young"):
        return "too few labels count yet to say whether the model holds"
    return "labels have not arrived yet"


def _answered(view: View) -> Mapping[str, Any] | None:
    """The verdict of the training that this very window asked for, once there is one."""
    if view["report"]["action"] != "retrain":
        return None
    return next((row for row in view["verdicts"] if moment(row["as_of"]) == moment(view["as_of"])), None)


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
    if drop:
        told = f"On {rows}, the log-loss is {interval(drop)} nats against its holdout's; a rise surely above {policy['min_metric_drop']:g} counts as worse."
        if known == "dropped" and drop["low"] <= policy["min_metric_drop"]:
            told += f" That alone proves nothing, but the sequential test of the error rate has reached its threshold ({policy['cusum_threshold']:g})."
        return ("Yes. " if known == "dropped" else "No sign of it. ") + told + corrected(view)
    if known == "dropped":
        return f"Yes. The sequential test of {version}'s error rate has reached its threshold ({policy['cusum_threshold']:g}). {coverage(view)}{corrected(view)}"
    guess = report["performance"].get("estimate")
    told = ""
    if guess and guess.get("log_loss") is not None:
        value = interval({"value": guess["log_loss"], "low": guess["low"], "high": guess["high"]}, sign=False)
        told = f" Estimated without labels, on {count(guess['rows'])} rows of this window: log-loss {value} nats, if only the inputs moved."
    return f"Not known yet. {coverage(view)}{corrected(view)}{told}"


def corrected(view: View) -> str:
    """What labels that were counted before and have changed since would change: they are told of, and counted no second time."""
    found = view["report"]["labels"].get("corrections", {})
    if not found.get("rows"):
        return ""
    return (
        f" {count(found['rows'])} labels that were counted before have been corrected since the last window: by them the model made "
        f"{abs(found['errors'])} {'more' if found['errors'] >= 0 else 'fewer'} errors. They are in the figures by window and in trainings; "
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
    come += f"; {count(young)} have come sooner, and count once their rows are that old" if young else ""
    return f"{'No' if not share else f'{share:.0%}'} of the window's {count(report['current_rows'])} rows {'has' if not share else 'have'} a label so far; {come}."


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
    if report["state"] == "NO_CHAMPION":
        return f"{count(report['current_rows'])} rows were served in this window; nothing can be compared before a first model serves."
    if report["state"] == "NOT_SERVED":
        return f"Nothing is compared: {report['reason']}."
    said = report["diagnosis"].get("why")
    if not said:
        moved = [one["feature"] for one in report["features"] if one["drifted"]]
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        said = (
            f"{', '.join(moved[:3])}{more} moved"
            if moved
            else "nothing moved"
            if report["features"]
            else "too few rows to compare"
        )
    # A field's name stays as it is declared.
    named = any(said.startswith(one["feature"]) for one in report["features"])
    said = f"{said if named else said[0].upper() + said[1:]}."
    hit = sorted(report["diagnosis"].get("slices", []), key=lambda one: -one["drop"]["value"])[:3]
    if hit:
        said += (
            " Hit worst: "
            + "; ".join(
                f"{one['field']} {one['value']}, {interval(one['drop'])} nats on {count(one['rows'])} rows"
                for one in hit
            )
            + "."
        )
    return said


def helped(view: View) -> str:
    """Did retraining help?"""
    told = list(_helped(view))
    return " ".join(told)


def _helped(view: View) -> Iterator[str]:
    report = view["report"]
    verdicts = view["verdicts"]
    if report["action"] == "retrain" and _answered(view) is None:
        yield "Not known yet: the training that this window asked for had no verdict when this page was made."
    if not verdicts:
        yield "No training has had a verdict so far."
        return
    last = verdicts[-1]
    verdict = last["verdict"]
    evidence = verdict["evidence"]
    lift = verdict["evidence"]["lift"]
    release = next(
        (
            one
            for one in view["releases"]
            if one["verdict_hash"] == last["hash"] or moment(one["as_of"]) == moment(last["as_of"])
        ),
        None,
    )
    asked = f"the training of {day(last['as_of'])}, asked for {ASKED_BY.get(last['trigger'], last['trigger'])},"
    if verdict["decision"] == "promote":
        against = "the champion" if evidence["opponent"] == "champion" else "the base rate"
        better = (
            f"improved {evidence['metric'].replace('_', '-')} by {interval(lift)} nats over {against} on {count(evidence['n'])} held-out rows"
            if lift
            else "passed"
        )
        served = (
            "was not released"
            if release is None
            else f"v{release['champion']} has served since {day(release['as_of'])}"
        )
        first = "Nothing was retrained yet: " if last["trigger"] == "initial" else "Yes: "
        yield f"{first}{asked} {better}; {served}."
        yield from _in_service(view, release)
    elif verdict["decision"] == "reject":
        yield f"No: {asked} was rejected, and the champion stayed: {verdict['reason']}."
    else:
        yield f"Cannot be told: {asked} was inconclusive, and the champion stayed: {verdict['reason']}."


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
    policy = view["policy"]
    about = view["report"]["policy"]
    if report["state"] == "NO_CHAMPION":
        return "Run a training: the first candidate that beats the base rate becomes the champion."
    if report["state"] == "NOT_SERVED":
        return "Nothing is to be done: the first window with served rows is the first that is judged."
    if report["state"] == "BLOCKED_DATA_QUALITY":
        return f"Somebody must look at the rows: {'; '.join(report['quality'].get('problems', [])) or report['reason']}. Nothing is retrained on them; a sound window unblocks by itself."
    answered = _answered(view)
    if answered is not None:
        after = (
            "Watch whether it holds in service"
            if answered["verdict"]["decision"] == "promote"
            else "The champion goes on; the policy waits longer before it tries again"
        )
        return f"The training of episode {report['episode']} has ended: its candidate was {OUTCOMES[answered['verdict']['decision']]}. {after}."
    if report["action"] == "retrain":
        return f"A training runs for episode {report['episode']}: {report['reason']}. Its candidate serves only if the gate finds it better."
    if report["state"] == "CONFIRMED":
        return f"Nothing is retrained yet: {report['reason']}."
    if report["state"] == "COOLDOWN":
        until = about.get("cooldown_until")
        return f"Nothing is done{f' until {day(until)}' if until else ''}: {report['reason']}."
    if report["state"] == "RETRAINING":
        return f"Wait for the training: {report['reason']}."
    if report["state"] == "WATCH":
        return f"Wait: {report['reason']}. A retraining needs it in {policy['confirm']} of {policy['out_of']} windows, or labels that show a drop."
    return f"Nothing is to be done, the policy is at rest ({report['reason'] or 'no reason to move'}). The next window is looked at as ever."


def answers(view: View) -> list[tuple[str, str]]:
    """The four questions of the page's beginning, answered."""
    return [
        ("Did the model get worse?", worse(view)),
        ("Why?", why(view)),
        ("Did retraining help?", helped(view)),
        ("What now?", now(view)),
    ]


def tone(view: View) -> str:
    """``good``, ``watch``, ``bad`` or ``none``: how the headline is coloured."""
    report = view["report"]
    if report["state"] in UNJUDGED:
        return "none"
    if report["state"] == "BLOCKED_DATA_QUALITY" or performance(view) == "dropped":
        return "bad"
    return (
        "watch"
        if report["action"] != "none" or report["state"] in {"WATCH", "CONFIRMED"} or not report["current_rows"]
        else "good"
    )
