"""A rollout's rows with what they need in Triton: a version that gets more traffic answers first, what is over goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from pipelines import ledger, storage
from pipelines.contracts import Order, Release
from pipelines.deploy import known, rollout, stages, switch
from pipelines.deploy.stages import Candidate, Said
from pipelines.errors import ConfigError, ConflictError, PerennialError
from pipelines.fields import Fields
from pipelines.params import Params
from pipelines.provenance import wall_time
from pipelines.settings import Settings

log = logging.getLogger(__name__)


def said(params: Params, head: Release, *, actor: str, reason: str, now: datetime | None = None) -> Said:
    """What a row says of itself; ``now`` is the wall clock.

    A case that replays history lives on its own clock: there a row is of the time of the one before it.
    """
    moment = now or wall_time()
    as_of = switch.moment(params, head, moment if params.schedule.live else None)
    return Said(actor=actor, reason=reason, now=moment, as_of=as_of)


def write(
    params: Params,
    settings: Settings,
    fields: Fields,
    order: Order,
    project: Callable[[Settings, str], object],
    point: str,
) -> Release:
    """Append the row of an order and let Triton and what ``project`` keeps follow; while :func:`repository.alone`.

    A version that shall answer more must answer the probe first, loaded anew if need be; if it does not, or somebody
    else was first (ConflictError), everything is as before. ``point`` names the failpoints, beside ``rollout``'s own.
    """

    def append() -> Release:
        return ledger.append(settings.ledger, order)

    offered = _offered(order)
    if offered is None:
        release = append()
    else:
        version, bundle, key = offered
        folder = storage.find(settings.root / bundle, key, verify=False)  # offering checks it
        loaded = version in rollout.kept(settings, params.case)
        release = rollout.promote(settings, fields, version, folder, append, params.serving, revive=loaded)
    storage.failpoint(point, "appended")
    try:
        rollout.restore(settings, fields, params.serving)
    except PerennialError as error:
        log.warning("%s: Triton's other versions are behind (reconcile will mend it): %s", params.case, error)
    try:
        project(settings, params.case)
    except PerennialError as error:
        log.warning("%s: aliases are behind the ledger (reconcile will mend them): %s", params.case, error)
    storage.failpoint(point, "projected")
    log.info("%s: %s by row %d (%s): %s", params.case, stages.told(release), release.seq, release.action, order.reason)
    return release


def opening(params: Params, head: Release, candidate: Candidate, *, actor: str, now: datetime | None = None) -> Order:
    """The row that opens the candidate's rollout, as the case's parameters declare it."""
    why = said(params, head, actor=actor, reason=candidate.reason, now=now)
    return stages.open_(head, candidate, params.rollout, why)


def by_hand(
    params: Params, settings: Settings, head: Release, version: int, *, reason: str, despite_verdict: bool = False
) -> Order:
    """The row that opens the rollout of any known version, because a person asks for it; also of one taken back before.

    Raises ConflictError if one is under way, the version serves already or the gate did not promote it, ConfigError if
    there is no such version or the case declares no stages.
    """
    case = params.case
    if not params.rollout.staged:
        raise ConfigError(
            f"{case} declares no rollout in stages (rollout: in its parameters): choose one, as in --preset safe, or "
            f"release version {version} at once by `release`"
        )
    if stages.underway(head):
        raise ConflictError(f"{case}: nothing was changed: {stages.told(head)}: wait for its end, or end it first")
    target = known.promoted(settings, case, version, switch.told(head), despite_verdict=despite_verdict)
    candidate = Candidate(
        version=target.pop("champion"), trigger="manual", as_of=head.as_of, reason=reason, by_hand=True, **target
    )
    return opening(params, head, candidate, actor=settings.who)


def _offered(order: Order) -> tuple[int, str, str] | None:
    """Version, bundle and key of what answers more by this row than before; None: nothing does."""
    if order.action in {"promote", "release", "rollback"}:
        return order.champion, order.bundle, order.candidate_key
    if order.action in {"open", "advance"} and order.challenger is not None and order.trial is not None:
        return order.challenger, order.trial.bundle, order.trial.candidate_key
    return None
