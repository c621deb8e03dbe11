"""rollback: the release below the champion serves again."""

from __future__ import annotations

import logging
from datetime import datetime

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Release, Switch
from pipelines.deploy import repository, stages, switch
from pipelines.errors import ConfigError, ConflictError
from pipelines.params import Params
from pipelines.registry import aliases
from pipelines.settings import Settings

log = logging.getLogger(__name__)


def run(
    params: Params,
    settings: Settings,
    *,
    reason: str,
    actor: str,
    as_of: datetime | None = None,
    from_version: int | None = None,
) -> Switch:
    """Append the rollback to the ledger once the version below the champion answers in Triton; says what serves now.

    ``from_version`` is the version to take back: if another one serves, nothing changes. Asked again, however often and
    by how many at once, it is taken back once. Without it, it is the version that was promoted or released last; if
    that was taken back already, the same order again (reason and actor) changes nothing, and another one is refused:
    two people who mean the same version, or a click too many, must not go two back. To go further back, name the
    version. A rollout that is under way is over then, and its candidate does not come back; to end it and keep the
    champion, abort it.

    Raises ConfigError without a reason or a release, ConflictError if the case is retired, if the version that serves
    is another one, if there is nothing to go back to or somebody else was first, Unavailable if Triton is down.
    """
    case = params.case
    if not reason.strip():
        raise ConfigError(f"a rollback of {case} needs a reason, it is kept in the ledger: --reason '...'")
    with repository.alone(settings.model_repository, case):
        ledger.require_in_service(settings.ledger, case)
        history = ledger.releases(settings.ledger, case)
        if not history:
            raise ConfigError(f"{case} has no release yet, there is nothing to roll back: run the training line first")
        head, newest = history[-1], ledger.head(settings.ledger, case)
        assert newest is not None
        if _carried_out(history, from_version, reason, actor):
            log.warning(
                "%s: nothing was changed: %s. To go further back: --from-version %d",
                case,
                switch.told(head),
                head.champion,
            )
            return Switch(case=case, serves=head.champion, was=history[-2].champion, changed=False, release=head)
        if from_version is not None and from_version != head.champion:
            more = f"; {stages.told(newest)}: `rollout abort` ends that" if newest.challenger == from_version else ""
            raise ConflictError(f"{case}: nothing was changed: {switch.told(head)}, not version {from_version}{more}")
        if from_version is None and head.action == "rollback":
            raise ConflictError(
                f"{case}: nothing was changed: {switch.told(head)}, which took version {history[-2].champion} back; "
                f"to go further back, say so: --from-version {head.champion}"
            )
        below = ledger.previous_release(settings.ledger, case)
        if below is None:
            raise ConflictError(
                f"{case}: version {head.champion} has no release below it to go back to: train and promote a better "
                "one instead"
            )
        target = below.model_dump(include=switch.TARGET)
        fields = load_fields(case)
        release = switch.append(
            params, settings, fields, newest, "rollback", target, reason=reason, actor=actor, as_of=as_of
        )
        storage.failpoint("rollback", "appended")
        switch.follow(params, settings, fields, aliases.project, f"{case} is rolled back")
    log.info("%s: %s", case, switch.told(release))
    return Switch(case=case, serves=release.champion, was=head.champion, changed=True, release=release)


def _carried_out(history: list[Release], from_version: int | None, reason: str, actor: str) -> bool:
    """Whether the newest release is this very order's."""
    head = history[-1]
    if head.action != "rollback":
        return False
    if from_version is None:
        return (head.reason, head.actor) == (reason, actor)
    return history[-2].champion == from_version != head.champion
