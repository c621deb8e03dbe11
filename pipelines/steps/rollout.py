"""rollout: let a promoted candidate serve, at once or in stages: a handshake with Triton, one row of the ledger."""

from __future__ import annotations

import logging
from pathlib import Path

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order, Release
from pipelines.deploy import moves, repository, rollout, stages
from pipelines.deploy.stages import Candidate
from pipelines.errors import ConflictError, PerennialError
from pipelines.line.candidate import promoted
from pipelines.line.facts import DatasetFacts, Outcome, RegisterFacts, RolloutFacts
from pipelines.line.step import Read, Run, Work
from pipelines.registry import aliases
from pipelines.settings import Settings

FAILPOINTS = ("staged", "loaded", "appended", "projected")
"""Beyond those of a commit: version in the repository, loaded in Triton, release in the ledger, aliases set."""
log = logging.getLogger(__name__)


def work(run: Run, read: Read) -> Work:
    """Facts: ``outcome``, ``version`` and ``seq`` (the release, None if there is none of this candidate).

    ``kept``: the gate did not promote, by its verdict in the ledger. ``already_released``: the candidate has served
    before; a candidate that was rolled back does not come back by running again, and neither does one whose rollout was
    ended (``aborted``). ``stale``: the champion is no longer the one it was judged against, or was released later than
    ``as_of``. ``promoted``: it serves. Whatever fails, the champion that serves goes on serving.

    A case that declares a rollout in stages, and has a champion, goes on elsewhere (steps/tick.py): ``opened`` says
    that the candidate is on trial, by the row ``seq``, ``waits`` that another one is.
    """

    def build(_folder: Path, _key: str) -> RolloutFacts:
        version = RegisterFacts.of(read["register"]).version
        candidate = promoted(run, read)
        if candidate is None:
            return RolloutFacts(outcome="kept", version=version, seq=None)
        with repository.alone(run.settings.model_repository, run.case):
            ledger.require_in_service(run.settings.ledger, run.case)
            outcome, release = _release(run, candidate, DatasetFacts.of(read["dataset"]).champion)
        if outcome == "promoted":
            _project(run.settings, run.case)
        goes_on = outcome in {"opened", "waits"} or (outcome == "promoted" and stages.underway(release))
        more = {"candidate": candidate.candidate_key} if goes_on else {}
        return RolloutFacts(outcome=outcome, version=version, seq=release.seq if release else None, **more)

    return Work(build)


def _release(run: Run, candidate: Candidate, champion: int | None) -> tuple[Outcome, Release | None]:
    settings, version, key = run.settings, candidate.version, candidate.candidate_key
    history = ledger.chain(settings.ledger, run.case)
    head = history[-1] if history else None
    known = rollout.settled(history, key, version, champion, run.as_of)
    if known is not None:
        return known
    if head is not None and (run.params.rollout.staged or stages.underway(head)):
        return _open(run, head, candidate)

    def append() -> Release:
        own = candidate.model_dump(exclude={"version", "by_hand"})
        order = Order(
            case=run.case, after=head.seq if head else 0, champion=version, action="promote", actor=settings.who, **own
        )
        return ledger.append(settings.ledger, order)

    fields, serving = load_fields(run.case), run.params.serving
    try:
        release = rollout.promote(settings, fields, version, run.dir / "export", append, serving)
    except ConflictError as error:
        log.warning("%s", error)
        return "stale", None
    try:
        rollout.restore(settings, fields, serving)
    except PerennialError as error:
        behind = "serves, but old versions were not put in order (reconcile will)"
        log.warning("%s: version %d %s: %s", run.case, version, behind, error)
    return "promoted", release


def _open(run: Run, head: Release, candidate: Candidate) -> tuple[Outcome, Release | None]:
    """Begin the candidate's rollout, unless another one's is under way and goes first."""
    params, settings = run.params, run.settings
    if stages.underway(head) and params.rollout.meanwhile == "wait":
        log.info("%s: version %d waits: %s", run.case, candidate.version, stages.told(head))
        return "waits", None
    order = moves.opening(params, head, candidate, actor=settings.who)
    try:
        row = moves.write(params, settings, load_fields(run.case), order, aliases.project, "rollout")
    except ConflictError as error:
        log.warning("%s", error)
        return "waits", None
    return ("promoted" if row.action == "promote" else "opened"), row


def _project(settings: Settings, case: str) -> None:
    """The aliases follow; a release is not undone because MLflow is down."""
    try:
        aliases.project(settings, case)
    except PerennialError as error:
        log.warning("%s: aliases are behind the ledger (reconcile will mend them): %s", case, error)
    storage.failpoint("rollout", "projected")
