"""The page of a rollout in words: its headline, and the answers to what people ask first."""

from __future__ import annotations

from datetime import datetime, timedelta

from pipelines.amounts import share
from pipelines.reports.staged.view import View

BY = {"guard": "the guard", "rollout": "its experiment"}
"""Who takes a challenger back, where no person does."""


def headline(view: View) -> str:
    """What became of the challenger, or where it is."""
    last, name = view.last, f"Version {view.challenger}"
    if taken_back(view):
        return f"{name} was taken back by {BY.get(last.who, last.who)} after {length(view.until - view.opened)}"
    if view.over is not None and last.share:
        return f"{name} serves"
    if view.over is not None:
        return f"The rollout of version {view.challenger} is over: another one took its place"
    if last.stage == "soak":
        return f"{name} answers everybody, and is watched"
    held = ", held by a person" if view.held else ""
    if last.stage == "shadow":
        return f"{name} is on trial in shadow: it answers nobody yet{held}"
    return f"{name} is on trial: it answers {share(last.share)} of all keys{held}"


def taken_back(view: View) -> bool:
    """Whether somebody ended the rollout, by whatever order, so that the challenger answers nobody any more."""
    return view.over is not None and not view.last.share and view.last.action != "open"


def tone(view: View) -> str:
    """The colour of the headline."""
    if taken_back(view):
        return "bad"
    return "watch" if view.held or (view.compared is not None and view.compared.unsplit) else "good"


def answers(view: View) -> list[tuple[str, str]]:
    """Questions and answers, those first that a person asks who is woken."""
    found = [("Where does it stand?", _stands(view)), ("Whom did it answer?", met(view))]
    if view.guarded is not None:
        found.append(("What does the guard say?", f"{view.guarded.verdict.capitalize()}: {view.guarded.reason}."))
    if view.compared is not None:
        said = view.compared.unsplit or view.compared.reason
        found.append(("What does the experiment say?", f"{view.compared.verdict.capitalize()}: {said}."))
    return found


def _stands(view: View) -> str:
    last = view.last
    since = f"Since {moment(last.at)} ({last.action}): {last.why}."
    if view.held:
        return f"{since} Held: {view.held}."
    return f"{since} Next: {view.waits}." if view.waits and view.over is None else since


def met(view: View) -> str:
    """How many rows the challenger answered, or harmed if it was taken back."""
    if view.sides is None:
        return "Nothing is known of its traffic."
    champion, challenger = view.sides
    own, every = challenger.answered + challenger.failed, 0
    every = own + champion.answered + champion.failed
    told = f"{own:,} of {every:,} rows since it was opened ({own / max(every, 1):.1%}) met version {view.challenger}"
    if taken_back(view):
        return f"{told} before it was taken back; {challenger.failed:,} of them had no answer of its own."
    return f"{told}; {challenger.failed:,} of them had no answer of its own."


def moment(at: datetime) -> str:
    """A moment by the wall clock.

    >>> moment(datetime(2026, 3, 1, 9, 5))
    '1 Mar 2026 09:05'
    """
    return f"{at.day} {at:%b %Y %H:%M}"


def length(span: timedelta) -> str:
    """How long something lasted.

    >>> length(timedelta(minutes=3)), length(timedelta(hours=5, minutes=8)), length(timedelta(days=3))
    ('3 minutes', '5.1 hours', '3.0 days')
    """
    minutes = span.total_seconds() / 60
    if minutes < 1:
        return f"{span.total_seconds():.0f} seconds"
    if minutes < 120:
        return f"{minutes:.0f} minute{'' if round(minutes) == 1 else 's'}"
    return f"{minutes / 60:.1f} hours" if minutes < 2880 else f"{minutes / 1440:.1f} days"
