"""What a drift run decides: whether a window is judged at all, on what evidence, and what the policy makes of it.

Plain functions on values; nothing is read or kept here, and nothing that explains a shift (drift/why) is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import polars as pl

from pipelines.contracts import CHANGES, FeatureDrift, Release, Window
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence, PolicyState
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.inputs.refused import refused
from pipelines.drift.labels.served import Reading, Served, serve
from pipelines.drift.past import Judgement, Past
from pipelines.drift.profile.spec import Spec
from pipelines.drift.run import Run
from pipelines.drift_report import Action, Earlier, Outcome, Quality, Remark, Rule, State
from pipelines.moments import day


@dataclass(frozen=True)
class Decision:
    """The policy's answer for this run, as it stands in the ledger, or why there is none.

    ``after`` is the policy's state after the window, ``rows`` how many rows of the window were there when it was made;
    both None where nothing was decided. ``judged_again`` and ``revision`` are those of drift/past.py.
    """

    state: State
    action: Action = "none"
    rule: Rule | None = None
    reason: str = ""
    episode: str | None = None
    after: PolicyState | None = None
    rows: int | None = None
    judged_again: Earlier | None = None
    revision: int = 1


NO_CHAMPION = Decision(State.NO_CHAMPION, rule="unjudged", reason="no champion yet: nothing to compare with")


@dataclass(frozen=True)
class Inputs:
    """How the window compares with the reference.

    ``features`` (none where they cannot be compared), and the ``quality`` of its rows.
    """

    features: tuple[FeatureDrift, ...]
    quality: Quality


@dataclass(frozen=True)
class Judged:
    """A judged window: what was looked at, and the answer.

    Either the one that ``stands`` already, or the ``fresh`` judgement that the ledger is to keep.
    """

    run: Run
    inputs: Inputs
    served: Served
    evidence: DriftEvidence
    stands: Decision | None
    fresh: Judgement | None

    @property
    def decision(self) -> Decision:
        """The answer for this run."""
        if self.fresh is not None:
            return decided(self.run, self.fresh)
        assert self.stands is not None
        return self.stands


def too_early(window: Window, served_since: datetime | None, first_champion: datetime) -> Decision | None:
    """Why nobody could have been served in the window yet, if that is so.

    Then there is nothing to judge, and nothing is wrong.
    """
    if served_since is None:
        why = "nothing has been served yet"
    elif window.end <= served_since:
        why = f"the first row was served on {day(served_since)}, after this window"
    elif window.end <= first_champion:
        why = f"the first champion is of {day(first_champion)}, after this window"
    else:
        return None
    return Decision(State.NOT_SERVED, rule="unjudged", reason=f"{why}: there is nothing to judge")


def judge(
    run: Run,
    reading: Reading,
    spec: Spec,
    rows: pl.DataFrame,
    lines: pl.DataFrame,
    releases: Iterable[Release],
    verdicts: Iterable[Mapping[str, Any]],
) -> Judged:
    """Judge a window.

    By its case's feature spec, the log's rows and label lines that ``reading`` asks for, and the ledger's releases and
    verdicts.
    """
    past, found = reading.past, inputs(run, spec)
    served = serve(run, reading, rows, lines)
    given = (
        Given(datetime.fromisoformat(row["as_of"]), row["verdict"].get("decision", ""), row["hash"]) for row in verdicts
    )
    became = outcome(past.policy, releases, given, run.as_of)
    seen = DriftEvidence(
        champion=run.version,
        training_rows=run.reference.rows,
        thin=not found.features or run.current.rows < run.params.drift.min_rows,
        unread=run.unread,
        problems=tuple(problem.message for problem in found.quality.problems),
        features=found.features,
        labels=served.labels,
        labelled=served.labelled,
        fresh_labels=served.fresh_labels,
        outcome=became.outcome,
        meanwhile=became.meanwhile,
        headroom=run.headroom,
    )
    known = _known(run, past)
    return Judged(run, found, served, seen, known, None if known is not None else _step(run, reading, seen))


def inputs(run: Run, spec: Spec) -> Inputs:
    """The window against the reference.

    Nothing is compared unless both were counted with the case's feature spec and all rows could be read.
    """
    before, current, params = run.reference, run.current, run.params.drift
    away = refused(run.arrived, run.window, params.min_rows)
    found = quality(before, current, run.window, params, run.served_since, run.unread, run.usual, away)
    if not before.spec == current.spec == spec.version:
        specs = f"feature spec {before.spec}, the window {current.spec}"
        told = f"champion {run.version}'s reference has {specs}: not compared"
        remark = Remark(code="other_features", message=told)
        return Inputs((), found.model_copy(update={"warnings": (*found.warnings, remark)}))
    if not current.rows or run.unread:
        return Inputs((), found)
    return Inputs(compare(before, current, run.fields, spec, params, run.version), found)


class Given(NamedTuple):
    """A verdict of the ledger: the clock of its run, what it says, and its sha256."""

    as_of: datetime
    decision: str
    hash: str


class Became(NamedTuple):
    """What became of a retraining, and who let which version serve since, if somebody else than its gate did."""

    outcome: Outcome
    meanwhile: str = ""


def outcome(
    before: PolicyState | None, releases: Iterable[Release], verdicts: Iterable[Given], as_of: datetime
) -> Became:
    """What became of the retraining that was asked for last, seen from before ``as_of``.

    ``releases`` are all rows of the case, those of rollouts too, ``verdicts`` the ledger's. Nobody has decided yet on a
    candidate that is on trial, or waits for the end of another one's rollout. One that a person released is promoted.
    """
    if before is None or before.retrained_at is None:
        return Became("none")
    asked = before.retrained_at
    rows = [release for release in releases if release.as_of < as_of]
    changes = [row for row in rows if row.action in CHANGES]
    if any(row.action == "promote" and asked <= row.trained for row in changes):
        return Became("promoted")
    judged = [given for given in verdicts if asked <= given.as_of < as_of]
    candidates = {given.hash for given in judged}
    by_hand = [row for row in changes if row.action == "release" and row.verdict_hash in candidates]
    if by_hand:
        return Became("promoted", _told(by_hand[-1]))
    tried = [row for row in rows if row.trial is not None and row.trial.as_of >= asked]
    open_ = bool(rows) and rows[-1].stage != "full"
    if not judged or (open_ and (tried[-1:] == rows[-1:] or (not tried and judged[-1].decision == "promote"))):
        return Became("pending")
    # An order in a case that replays history has the time of the row before it: who serves tells it.
    if changes and (changes[-1].as_of >= asked or changes[-1].champion != before.champion):
        return Became("overtaken", _told(changes[-1]))
    return Became("kept")


def _told(row: Release) -> str:
    """Who let which version serve by a row."""
    by_hand = row.action == "release" or (row.action == "rollback" and row.trial is None)
    who = "a person" if by_hand else "the loop"
    return f"{who} let version {row.champion} serve meanwhile ({row.action}, {row.actor}: {row.reason})"


def _known(run: Run, past: Past) -> Decision | None:
    """The answer to a window that was judged.

    By this run, by another one, or not, being older than the newest one that was.

    None: the window is to be judged now.
    """
    if past.stands is not None:
        return decided(run, past.stands)
    state, newest = past.policy, past.judgements[-1] if past.judgements else None
    if newest is not None and newest.as_of > run.as_of:
        reason = f"a later window, of {day(newest.as_of)}, was judged before"
    elif state is not None and state.end >= run.window.end:
        reason = "this window was judged before"
    else:
        return None
    return Decision(
        State.STABLE if state is None else state.name, rule="reported_only", reason=f"{reason}: reported only"
    )


def _step(run: Run, reading: Reading, seen: DriftEvidence) -> Judgement:
    """The policy's one step from the past to this window."""
    past = reading.past
    after, _ = policy.step(past.policy, seen, run.params.drift, run.as_of, run.params.case, run.window.end)
    first, revision = past.first, 1
    if first is not None and first.as_of == run.as_of:
        revision = first.revision + 1
    return Judgement(
        as_of=run.as_of,
        policy=after,
        base="" if past.base is None else past.base.name,
        rows=run.current.rows,
        unread=run.unread,
        short=run.unread > 0 or run.current.rows < run.params.drift.min_rows,
        segments=reading.record,
        taken_over=reading.since if reading.takes_over else None,
        judged_again=None if first is None else Earlier(as_of=first.as_of, rows=first.rows or 0),
        revision=revision,
    )


def decided(run: Run, judgement: Judgement) -> Decision:
    """What a judgement that stands in the ledger says of the run, however many rows there are by now."""
    after, rows = judgement.policy, run.current.rows
    reason = after.reason
    if judgement.short and judgement.rows != rows:
        # Else a page would speak of rows that are missing, beside those that came since.
        reason = f"{reason} (decided on {judgement.rows or 0:,} rows; {rows:,} are there now)"
    return Decision(
        after.name,
        after.action,
        after.rule,
        reason,
        after.episode,
        after,
        judgement.rows,
        judgement.judged_again,
        judgement.revision,
    )
