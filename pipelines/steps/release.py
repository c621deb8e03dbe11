"""release: a version that is known serves, because a person names it."""

from __future__ import annotations

import logging
from datetime import datetime

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Switch
from pipelines.deploy import known, repository, stages, switch
from pipelines.errors import ConfigError
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
    version: int,
    despite_verdict: bool = False,
    as_of: datetime | None = None,
) -> Switch:
    """Append a release of ``version`` once it answers in Triton; says what serves now.

    If it serves already, nothing changes. A rollout that is under way is over then. Known is a version that was
    released before, or that a training run registered. It needs the verdict ``promote``, as it stands in the ledger;
    ``despite_verdict`` releases one that was turned away, and the row says who did so and why. Its files must be those
    that were judged.

    Raises ConfigError without a reason, for an unknown version or before the first release, ConflictError if the
    case is retired, the verdict says no or somebody else was first, IntegrityError if the verdict or a file is not
    what was recorded, Unavailable if Triton is down.
    """
    case = params.case
    if not reason.strip():
        raise ConfigError(f"a release of {case} needs a reason, it is kept in the ledger: --reason '...'")
    with repository.alone(settings.model_repository, case):
        ledger.require_in_service(settings.ledger, case)
        head = ledger.head(settings.ledger, case)
        if head is None:
            raise ConfigError(
                f"{case} has no release yet: run the training line first, its gate decides on the first champion"
            )
        if head.champion == version:
            more = f"; {stages.told(head)}: `rollout abort` ends that" if head.challenger is not None else ""
            log.warning("%s: nothing was changed: %s%s", case, switch.told(head), more)
            return Switch(case=case, serves=version, was=version, changed=False, release=head)
        target = known.promoted(settings, case, version, switch.told(head), despite_verdict=despite_verdict)
        fields = load_fields(case)
        release = switch.append(
            params, settings, fields, head, "release", target, reason=reason, actor=actor, as_of=as_of
        )
        storage.failpoint("release", "appended")
        switch.follow(params, settings, fields, aliases.project, f"{case}: version {version} is released")
    log.info("%s: %s", case, switch.told(release))
    return Switch(case=case, serves=version, was=head.champion, changed=True, release=release)
