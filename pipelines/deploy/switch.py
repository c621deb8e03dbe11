"""Another version serves by a person's order: once it answers in Triton, and by one compare-and-swap in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines import ledger, storage
from pipelines.contracts import Action, Order, Release
from pipelines.deploy import rollout
from pipelines.errors import PerennialError
from pipelines.fields import Fields
from pipelines.params import Params
from pipelines.provenance import wall_time
from pipelines.settings import Settings

log = logging.getLogger(__name__)
TARGET = {"champion", "candidate_key", "bundle", "mlflow_run", "verdict_hash"}
"""What of a release says which version serves, and on what."""


def append(
    params: Params,
    settings: Settings,
    fields: Fields,
    head: Release,
    action: Action,
    target: Mapping[str, Any],
    *,
    reason: str,
    actor: str,
    as_of: datetime | None,
) -> Release:
    """Let ``target`` (``TARGET``'s names) serve after ``head``, the newest row; call while :func:`repository.alone`.

    A rollout that is under way is over then. Raises ConflictError if ``head`` is the newest row no more, Unavailable if
    Triton is down, IntegrityError if the version's files are not those that were judged.
    """
    folder = storage.find(settings.root / target["bundle"], target["candidate_key"], verify=False)  # offering checks it
    rollout.offer(settings, fields, target["champion"], folder, serving=params.serving, revive=True)
    return ledger.append(
        settings.ledger,
        Order(
            case=params.case,
            after=head.seq,
            action=action,
            trigger="manual",
            reason=reason,
            actor=actor,
            as_of=moment(params, head, as_of),
            **target,
        ),
    )


def follow(
    params: Params, settings: Settings, fields: Fields, project: Callable[[Settings, str], object], done: str
) -> None:
    """Let Triton's other versions and what ``project`` keeps follow an order, which stands without them.

    ``done`` says the order in the warning, if one of them is away: reconcile mends it.
    """
    try:
        rollout.restore(settings, fields, params.serving)
        project(settings, params.case)
    except PerennialError as error:
        log.warning("%s; what follows the ledger is behind (reconcile will mend it): %s", done, error)


def moment(params: Params, head: Release, as_of: datetime | None) -> datetime:
    """The ``as_of`` of an order, never before the release that it follows.

    A case that replays history lives on its own clock: a wall-clock time (none given, or one beyond its period)
    would come after all its runs and hide this release from them, so there it is the head's own time.
    """
    found = as_of or wall_time()
    end = params.period[1]
    if not params.schedule.live and (as_of is None or (end is not None and as_of > end)):
        found = head.as_of
    return max(found, head.as_of)


def told(release: Release) -> str:
    """A release in a sentence about what serves."""
    return (
        f"version {release.champion} serves, by release {release.seq} ({release.action}, {release.actor}: "
        f"{release.reason})"
    )
