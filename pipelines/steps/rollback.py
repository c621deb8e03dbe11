"""rollback: the release below the champion serves again."""

from __future__ import annotations

import logging
from datetime import datetime

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import Release
from pipelines.deploy import repository, rollout
from pipelines.errors import ConfigError, ConflictError, PerennialError
from pipelines.registry import aliases

STEP_VERSION = 1
ROOMS = ("pipelines.deploy.rollout", "pipelines.deploy.repository", "pipelines.deploy.triton", "pipelines.registry.aliases", "pipelines.runtime")
log = logging.getLogger(__name__)


def run(params: Params, settings: Settings, *, reason: str, actor: str, as_of: datetime | None = None) -> Release:
    """Append the rollback to the ledger once the version below the champion answers in Triton; returns the new release.

    A request with an ``as_of`` can be repeated: if the newest release is this very rollback (same reason, actor
    and ``as_of``, recorded since), it is returned and nothing changes. Raises ConfigError without a reason or a
    release, ConflictError if there is nothing to go back to or somebody else was first, Unavailable if Triton is down.
    """
    case, fields = params.case, load_fields(params.case)
    if not reason.strip():
        raise ConfigError(f"a rollback of {case} needs a reason, it is kept in the ledger: --reason '...'")
    with repository.alone(settings.model_repository, case):
        head = ledger.head(settings.ledger, case)
        if head is None:
            raise ConfigError(f"{case} has no release yet, there is nothing to roll back: run the training line first")
        moment = _moment(params, head, as_of)
        if as_of is not None and _is_repeated(head, reason, actor, as_of, moment):
            return head
        below = ledger.previous_release(settings.ledger, case)
        if below is None:
            raise ConflictError(f"{case}: version {head.champion} has no release below it to go back to: train and promote a better one instead")
        rollout.offer(settings, fields, below.champion, rollout.bundle_of(settings, below), device=params.serving.device, revive=True)
        release = ledger.append(
            settings.ledger,
            case=case,
            expected_seq=head.seq,
            champion=below.champion,
            candidate_key=below.candidate_key,
            bundle=below.bundle,
            action="rollback",
            trigger="manual",
            reason=reason,
            actor=actor,
            mlflow_run=below.mlflow_run,
            verdict_hash=below.verdict_hash,
            as_of=moment,
        )
        storage.failpoint("rollback", "appended")
        _follow(params, settings)
    return release


def _moment(params: Params, head: Release, as_of: datetime | None) -> datetime:
    """The rollback's ``as_of``, never before the release that it takes back.

    A case that replays history lives on its own clock: a wall-clock time (none given, or one beyond its period)
    would come after all its runs and hide this rollback from them, so there it is the head's own time.
    """
    moment = as_of or storage.wall_time()
    end = params.period[1]
    if not params.schedule.live and (as_of is None or (end is not None and as_of > end)):
        moment = head.as_of
    return max(moment, head.as_of)


def _is_repeated(head: Release, reason: str, actor: str, as_of: datetime, moment: datetime) -> bool:
    same = (head.action, head.reason, head.actor, head.as_of) == ("rollback", reason, actor, moment)
    return same and as_of <= head.recorded_at


def _follow(params: Params, settings: Settings) -> None:
    """Triton's other versions and the aliases follow; the rollback stands without them, reconcile mends them."""
    try:
        rollout.restore(settings, load_fields(params.case), params.serving.device)
        aliases.project(settings, params.case)
    except PerennialError as error:
        log.warning("%s is rolled back; what follows the ledger is behind (reconcile will mend it): %s", params.case, error)
