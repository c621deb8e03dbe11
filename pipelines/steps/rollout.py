"""rollout: let a promoted candidate serve, by the handshake with Triton and one compare-and-swap in the ledger."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order, Release
from pipelines.deploy import repository, rollout
from pipelines.errors import ConflictError, IntegrityError, PerennialError
from pipelines.line.facts import DatasetFacts, GateFacts, Outcome, RegisterFacts, RolloutFacts
from pipelines.line.step import Read, Run, Work
from pipelines.registry import aliases
from pipelines.settings import Settings

FAILPOINTS = ("staged", "loaded", "appended", "projected")
"""Beyond those of a commit: version in the repository, loaded in Triton, release in the ledger, aliases set."""
log = logging.getLogger(__name__)


def work(run: Run, read: Read) -> Work:
    """Facts: ``outcome``, ``version`` and ``seq`` (the release, None if there is none of this candidate).

    ``kept``: the gate did not promote, by its verdict in the ledger. ``already_released``: the candidate has served
    before; a candidate that was rolled back does not come back by running again. ``stale``: the champion is no longer
    the one it was judged against, or was released later than ``as_of``. ``promoted``: it serves. Whatever fails, the
    champion that serves goes on serving.
    """

    def build(_folder: Path, _key: str) -> RolloutFacts:
        registered, verdict = RegisterFacts.of(read["register"]), _verdict(run, read)
        if verdict["decision"] != "promote":
            return RolloutFacts(outcome="kept", version=registered.version, seq=None)
        with repository.alone(run.settings.model_repository, run.case):
            ledger.require_in_service(run.settings.ledger, run.case)
            outcome, release = _release(run, read, registered, verdict["reason"])
        if outcome == "promoted":
            _project(run.settings, run.case)
        return RolloutFacts(outcome=outcome, version=registered.version, seq=release.seq if release else None)

    return Work(build)


def _verdict(run: Run, read: Read) -> dict[str, Any]:
    """The verdict on this very candidate as it stands in the ledger; what a file says of it decides nothing.

    Raises IntegrityError if the ledger has none of this gate run, or one of the steps belongs to another candidate.
    """
    export, gate, registered, evaluate = (read[step] for step in ("export", "gate", "register", "evaluate"))
    cited = GateFacts.of(gate).verdict_sha256
    found = ledger.verdict(run.settings.ledger, export.case, cited, gate_key=gate.key)
    judged = (found["gate_key"], gate.inputs.get("evaluate"), evaluate.inputs.get("export"), registered.inputs)
    if judged != (gate.key, evaluate.key, export.key, {"gate": gate.key, "export": export.key}):
        raise IntegrityError(
            f"{run.dir}: the verdict that its gate cites ({found['hash'][:12]}) is not the one on this candidate "
            f"({export.key[:12]}): run evaluate, gate and register again"
        )
    verdict: dict[str, Any] = found["verdict"]
    return verdict


def _release(run: Run, read: Read, registered: RegisterFacts, reason: str) -> tuple[Outcome, Release | None]:
    settings, version, candidate_key = run.settings, registered.version, read["export"].key
    history = ledger.releases(settings.ledger, run.case)
    champion = DatasetFacts.of(read["dataset"]).champion
    known = rollout.settled(history, candidate_key, version, champion, run.as_of)
    if known is not None:
        return known

    def append() -> Release:
        return ledger.append(
            settings.ledger,
            Order(
                case=run.case,
                after=history[-1].seq if history else 0,
                champion=version,
                candidate_key=candidate_key,
                bundle=str((run.dir / "export").relative_to(settings.root)),
                action="promote",
                trigger=run.trigger,
                reason=reason,
                actor=settings.who,
                mlflow_run=registered.mlflow_run,
                verdict_hash=GateFacts.of(read["gate"]).verdict_sha256,
                as_of=run.as_of,
            ),
        )

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


def _project(settings: Settings, case: str) -> None:
    """The aliases follow; a release is not undone because MLflow is down."""
    try:
        aliases.project(settings, case)
    except PerennialError as error:
        log.warning("%s: aliases are behind the ledger (reconcile will mend them): %s", case, error)
    storage.failpoint("rollout", "projected")
