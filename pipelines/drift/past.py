"""What earlier runs decided, as one read of the ledger finds it, and which of it a window is judged from.

A new judgement is kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ConfigDict

from pipelines import ledger, storage
from pipelines.contracts import Instant, Value
from pipelines.drift.evidence import DriftEvidence, PolicyState
from pipelines.drift_report import Earlier
from pipelines.segments import Name


class Judgement(Value):
    """What one drift run decided, as the ledger keeps it.

    ``policy``: the state after the window. ``base`` names the judgement that it was made from (empty: none; None: not
    kept, then it is the one before). ``rows`` of the window were there, ``unread`` more could not be read; a ``short``
    window had too few. ``segments`` of each kind are those of the log that no run before had seen. None in what earlier
    releases wrote: not kept. ``taken_over``: up to when labels counted by the time that was stated, in the first run
    that keeps segments. ``judged_again`` is the judgement whose place this one takes, ``revision`` counts those of one
    ``as_of``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    as_of: Instant
    policy: PolicyState
    base: str | None = None
    rows: int | None = None
    unread: int = 0
    short: bool = False
    segments: dict[str, list[Name]] | None = None
    taken_over: Instant | None = None
    judged_again: Earlier | None = None
    revision: int = 1

    @property
    def name(self) -> str:
        """What the ledger's chain calls it."""
        moment = self.as_of.isoformat()
        return moment if self.revision == 1 else f"{moment}#{self.revision}"

    def row(self) -> dict[str, Any]:
        """As JSON values for the ledger; what is not known is left out."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


@dataclass(frozen=True)
class Past:
    """What one read of the ledger said of the case's windows: everything that a run does hangs on that read.

    ``judgements``: all of them, oldest first. ``base``: the one that this window is judged from. ``stands``: the
    decision of this run, if it was made before. ``first``: the judgement on fewer rows whose place this run takes.
    """

    judgements: tuple[Judgement, ...] = ()
    base: Judgement | None = None
    stands: Judgement | None = None
    first: Judgement | None = None

    @property
    def policy(self) -> PolicyState | None:
        """The policy's state before this window."""
        return None if self.base is None else self.base.policy

    @property
    def follows(self) -> str:
        """The name of the judgement that a new one comes after, or takes the place of; empty: there is none."""
        before = self.first or self.base
        return "" if before is None else before.name

    @property
    def known(self) -> tuple[Judgement, ...]:
        """The judgements up to the one that the window is judged from."""
        if self.base is None:
            return ()
        return self.judgements[: 1 + [one.name for one in self.judgements].index(self.base.name)]


def recall(rows: Iterable[Mapping[str, Any]], as_of: datetime, end: datetime, current: int, unread: int) -> Past:
    """The past of the run at ``as_of`` whose window ends at ``end``, of the ledger's ``rows``, oldest first.

    The window is judged again if its judgement is the newest of all, was made on too few rows, and there are more now
    (``current``, or fewer ``unread``), unless it opened an episode or asked for a retraining: that stands.
    """
    judgements = tuple(Judgement.model_validate(row) for row in rows)
    newest_first = judgements[::-1]
    own = next((one for one in newest_first if one.as_of == as_of), None)
    earlier = next((one for one in newest_first if one.as_of < as_of), None)
    same = own
    if own is None and earlier is not None and earlier.policy.end == end:
        same = earlier
    if same is not None and same is judgements[-1] and same.short:
        more = current > (same.rows or 0) or unread < same.unread
        base = _base(judgements, same)
        was_open = None if base is None else base.policy.episode
        opened = same.policy.action == "retrain" or same.policy.episode not in {None, was_open}
        if more and not opened:
            return Past(judgements, base, first=same)
    if own is not None:
        return Past(judgements, _base(judgements, own), stands=own)
    return Past(judgements, earlier)


def _base(judgements: Sequence[Judgement], judgement: Judgement) -> Judgement | None:
    """What ``judgement`` was made from: the one before it, unless it took the place of another."""
    older = [one for one in judgements if one.as_of < judgement.as_of]
    if judgement.base is None:
        return older[-1] if older else None
    return next((one for one in older if one.name == judgement.base), None)


def keep(url: str, case: str, past: Past, fresh: Judgement, evidence: DriftEvidence) -> bool:
    """Enter a judgement that was made from ``past`` into the ledger; False if another try of its window was first."""
    kept = ledger.record_drift_state(
        url,
        case=case,
        as_of=fresh.as_of,
        state=fresh.row(),
        evidence_hash=storage.digest(evidence),
        previous=past.follows,
        revision=fresh.revision,
    )
    return storage.canonical_json(kept) == storage.canonical_json(fresh.row())
