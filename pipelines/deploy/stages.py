"""A rollout's rows: what each event makes of the newest row of a case's releases.

    open -> shadow -> canary, step by step -> promote -> soak -> settle
              |             |                              |
              +--- abort ---+                              +- rollback

Pure: every answer is an order, which the ledger takes if the row is still its newest one. A rollout's weights only
rise, but for those of a bandit (:func:`weigh`); its salt is one, and what decided a row stands in the row's trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, TypeVar

from pydantic import Field

from pipelines.arms import WHOLE
from pipelines.contracts import Action, Instant, Order, Release, Retirement, Stage, Trial, Trigger, Value
from pipelines.errors import ConflictError
from pipelines.params import HoldParams, RolloutParams
from pipelines.storage import digest

T = TypeVar("T", Release, Retirement)
SHADOW = -1
"""The step of a rollout whose challenger answers nobody yet."""
STUCK_TIMES, STUCK_MORE = 5, timedelta(days=1)
"""A stage is stuck that lasts so many times as long as it has to, and so much longer."""


class Candidate(Value):
    """A version that the gate promoted; the names mean what they do in :class:`Release`."""

    version: int
    candidate_key: str
    bundle: str
    mlflow_run: str | None
    verdict_hash: str | None
    trigger: Trigger
    as_of: Instant
    reason: str = ""
    by_hand: bool = False


class Said(Value):
    """Who moves a rollout and why; ``now`` is the wall clock, ``as_of`` the case's own."""

    actor: str
    reason: str
    now: Instant
    as_of: Instant
    evidence: dict[str, Any] = Field(default_factory=dict)
    evidence_hash: str = ""


def underway(head: Release | None) -> bool:
    """Whether a rollout is under way, its soak included."""
    return head is not None and head.stage != "full"


def plan_of(trial: Trial) -> RolloutParams:
    """The rollout as it was declared when it was opened."""
    return RolloutParams.model_validate(trial.plan)


def on_trial(head: Release) -> int | None:
    """The version that a rollout is about: the challenger, or in its soak the champion; None: none is under way."""
    if head.stage == "soak":
        return head.champion
    return head.challenger


def open_(head: Release, candidate: Candidate, plan: RolloutParams, said: Said) -> Order:
    """Begin a rollout; one that is under way is replaced.

    Without shadow and steps the first row is the promotion, and its soak follows. Raises ConflictError for the version
    that serves.
    """
    if candidate.version == head.champion:
        raise ConflictError(f"{head.case}: version {candidate.version} serves already: there is nothing to roll out")
    step = 0 if plan.shadow is None else SHADOW
    own = candidate.model_dump(
        include={"candidate_key", "bundle", "mlflow_run", "verdict_hash", "trigger", "as_of", "by_hand"}
    )
    trial = Trial(
        **own,
        plan=plan.model_dump(mode="json"),
        step=step,
        opened=said.now,
        since=said.now,
        evidence=said.evidence,
        evidence_hash=said.evidence_hash,
    )
    salt = digest([head.case, candidate.candidate_key])[:16]
    if step == len(plan.steps) - 1:
        return _promotion(head, candidate.version, trial, salt, said)
    reason = said.reason
    if head.challenger is not None:
        reason = f"in the place of version {head.challenger}: {reason}"
    return _on(head, "open", candidate.version, trial, salt, said.model_copy(update={"reason": reason}))


def advance(head: Release, said: Said) -> Order:
    """The next stage: a higher weight, or after the last step the promotion. Raises ConflictError: none is open."""
    trial = _open(head, "advanced")
    assert head.challenger is not None
    step = trial.step + 1
    trial = trial.model_copy(update={"step": step, "since": said.now, "held": "", **_found(said)})
    if step == len(plan_of(trial).steps) - 1:
        return _promotion(head, head.challenger, trial, head.salt, said)
    return _on(head, "advance", head.challenger, trial, head.salt, said)


def weigh(head: Release, weight: int, said: Said) -> Order:
    """Another weight in the same step, up or down: what the bandit of an experiment does, and nothing else.

    The stage lasts anew from here on. Raises ConflictError unless an experiment with a bandit is under way whose bounds
    hold the weight.
    """
    trial = _open(head, "weighed")
    asked = plan_of(trial).experiment
    if asked is None or not asked.bandit or head.stage != "canary" or trial.step != 0:
        raise ConflictError(
            f"{head.case}: {told(head)}: only a bandit moves the weight within a step, and none is at work"
        )
    least, most = (round(share * WHOLE) for share in asked.bounds)
    if not least <= weight <= most:
        raise ConflictError(f"{head.case}: the weight {weight} is not within {least} and {most} (experiment.bounds)")
    trial = trial.model_copy(update={"since": said.now, **_found(said)})
    return _row(head, "advance", trial, said, stage="canary", challenger=head.challenger, weight=weight, salt=head.salt)


def hold(head: Release, said: Said) -> Order:
    """Stay in this stage until somebody resumes; the guard goes on. Raises ConflictError if it is held already."""
    trial = _under_way(head, "held")
    if trial.held:
        raise ConflictError(f"{head.case}: the rollout of version {on_trial(head)} is held already: {trial.held}")
    return _still(head, "hold", trial.model_copy(update={"held": said.reason}), said)


def resume(head: Release, said: Said) -> Order:
    """Go on after :func:`hold`. Raises ConflictError if nobody holds it."""
    trial = _under_way(head, "resumed")
    if not trial.held:
        raise ConflictError(f"{head.case}: nobody holds the rollout of version {on_trial(head)}")
    return _still(head, "resume", trial.model_copy(update={"held": ""}), said)


def abort(head: Release, said: Said) -> Order:
    """The champion alone answers again, and the candidate does not come back. Raises ConflictError: none is open."""
    trial = _open(head, "aborted").model_copy(update=_found(said))
    return _row(head, "abort", trial, said, stage="full")


def settle(head: Release, said: Said) -> Order:
    """The soak is over. Raises ConflictError in any other stage."""
    trial = _under_way(head, "settled")
    if head.stage != "soak":
        raise ConflictError(f"{head.case}: {told(head)}: only a soak is settled")
    return _row(head, "settle", trial.model_copy(update=_found(said)), said, stage="full")


def take_back(head: Release, below: Release, said: Said) -> Order:
    """What the guard does in a soak: the release below serves again. Raises ConflictError in any other stage."""
    trial = _under_way(head, "taken back")
    if head.stage != "soak":
        raise ConflictError(f"{head.case}: {told(head)}: it is aborted, not taken back")
    target = below.model_copy(update={"seq": head.seq, "as_of": head.as_of})
    return _row(target, "rollback", trial.model_copy(update=_found(said)), said, stage="full")


def watched(rows: Sequence[Release], said: Sequence[Retirement], now: datetime) -> datetime:
    """``now`` on a clock that stands while somebody holds the newest row's stage, or its case is out of service.

    ``rows`` are the rollout's, ``said`` is all that was said of the case's being in service, both oldest first.
    """
    still = [stretch for row, stretch in _lasting(rows, now) if row.trial is not None and row.trial.held]
    still += [stretch for one, stretch in _lasting(said, now) if one.retired]
    stood, at = timedelta(), _under_way(rows[-1], "watched").since
    for begin, end in sorted(still):  # who holds a rollout of a retired case stops its clock once
        if (until := min(end, now)) > (since := max(begin, at)):
            stood, at = stood + (until - since), until
    return now - stood


def _lasting(rows: Sequence[T], now: datetime) -> Iterator[tuple[T, tuple[datetime, datetime]]]:
    """Each row with its time and that of the next one; the newest lasts until ``now``."""
    return zip(rows, pairwise([*(row.recorded_at for row in rows), now]), strict=True)


def due(head: Release, now: datetime, answered: int) -> str:
    """What the stage still has to wait for, in words; "": it has lasted as long as its plan says.

    ``now`` by :func:`watched`; ``answered``: rows that the challenger answered in it.
    """
    trial = _under_way(head, "moved")
    wanted = wait_of(head)
    left = trial.since + timedelta(minutes=wanted.minutes) - now
    if left > timedelta():
        return f"{_minutes(left)} of {wanted.minutes:g} minutes are left"
    if answered < wanted.rows:
        return f"{answered} of {wanted.rows} rows are answered"
    return ""


def wait_of(head: Release) -> HoldParams:
    """What the stage has to last."""
    trial = _under_way(head, "moved")
    plan = plan_of(trial)
    if head.stage == "soak":
        return HoldParams(minutes=plan.soak_minutes)
    if trial.step == SHADOW:
        assert plan.shadow is not None
        return HoldParams(minutes=60 * (plan.shadow.hours or 0.0), rows=plan.shadow.rows or 0)
    return plan.held(trial.step)


def stuck(head: Release, now: datetime) -> bool:
    """Whether the stage has lasted far longer than it has to (``now`` by :func:`watched`), and nobody holds it."""
    trial = _under_way(head, "moved")
    limit = STUCK_TIMES * timedelta(minutes=wait_of(head).minutes) + STUCK_MORE
    return not trial.held and now - trial.since > limit


def of_trial(chain: Sequence[Release], trial: Trial) -> list[Release]:
    """The rows of one rollout, oldest first."""
    key = (trial.candidate_key, trial.opened)
    return [row for row in chain if row.trial is not None and (row.trial.candidate_key, row.trial.opened) == key]


def to_its_end(chain: Sequence[Release], trial: Trial) -> list[Release]:
    """The rows of one rollout, and the one that ended it if that is none of its own: a rollback, another version's."""
    rows = of_trial(chain, trial)
    if underway(rows[-1]):
        rows += [row for row in chain if row.seq == rows[-1].seq + 1]
    return rows


def share_of(version: int, row: Release) -> float:
    """The share of all keys that a version answers by a row."""
    return row.weight / WHOLE if version == row.challenger else float(version == row.champion)


def told(head: Release) -> str:
    """How far a rollout is, in a sentence."""
    if head.trial is None or not underway(head):
        return "no rollout is under way"
    held = f", held: {head.trial.held}" if head.trial.held else ""
    if head.stage == "soak":
        return f"version {head.champion} answers everybody, and is watched{held}"
    share = "nobody yet (shadow)" if head.stage == "shadow" else f"{head.weight / WHOLE:.2%}"
    return f"version {head.challenger} on trial beside version {head.champion} answers {share}{held}"


def _minutes(left: timedelta) -> str:
    return f"{left.total_seconds() / 60:.3g}"


def _found(said: Said) -> dict[str, Any]:
    return {"evidence": said.evidence, "evidence_hash": said.evidence_hash}


def _under_way(head: Release, done: str) -> Trial:
    if head.trial is None or not underway(head):
        raise ConflictError(f"{head.case}: nothing was changed: no rollout is under way that could be {done}")
    return head.trial


def _open(head: Release, done: str) -> Trial:
    """The trial of a challenger; a soak has none any more."""
    trial = _under_way(head, done)
    if head.challenger is None:
        raise ConflictError(
            f"{head.case}: nothing was changed: version {head.champion} serves everybody already and cannot be {done}: "
            "`rollback` takes it back"
        )
    return trial


def _weight(trial: Trial) -> tuple[Stage, int]:
    if trial.step == SHADOW:
        return "shadow", 0
    return "canary", max(1, round(plan_of(trial).steps[trial.step] * WHOLE))


def _on(head: Release, action: Action, version: int, trial: Trial, salt: str, said: Said) -> Order:
    """A row with ``version`` on trial."""
    stage, weight = _weight(trial)
    if action == "advance":
        weight = max(weight, head.weight)  # a bandit may have given it more than the next step has
    return _row(head, action, trial, said, stage=stage, challenger=version, weight=weight, salt=salt)


def _still(head: Release, action: Literal["hold", "resume"], trial: Trial, said: Said) -> Order:
    """The same stage, but for what its trial says."""
    same = head.model_dump(include={"stage", "challenger", "weight", "salt"})
    return _row(head, action, trial, said, **same)


def _promotion(head: Release, version: int, trial: Trial, salt: str, said: Said) -> Order:
    stage: Stage = "soak" if plan_of(trial).soak_minutes else "full"
    own = trial.model_dump(include={"candidate_key", "bundle", "mlflow_run", "verdict_hash"})
    action: Action = "release" if trial.by_hand else "promote"
    return _row(head.model_copy(update={"champion": version, **own}), action, trial, said, stage=stage, salt=salt)


def _row(head: Release, action: Action, trial: Trial, said: Said, **more: Any) -> Order:
    """The row after ``head``, of its champion."""
    own = head.model_dump(include={"case", "champion", "candidate_key", "bundle", "mlflow_run", "verdict_hash"})
    return Order(
        **own,
        after=head.seq,
        action=action,
        trigger=trial.trigger,
        reason=said.reason,
        actor=said.actor,
        as_of=max(said.as_of, head.as_of, trial.as_of),
        trial=trial,
        **more,
    )
