"""rollout: let a promoted candidate serve, by the handshake with Triton and one compare-and-swap in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release, Trigger
from pipelines.deploy import repository, rollout
from pipelines.errors import ConflictError, IntegrityError, PerennialError
from pipelines.params import Params
from pipelines.registry import aliases
from pipelines.settings import Settings

STEP_VERSION = 1
ROOMS = (
    "pipelines.deploy.rollout",
    "pipelines.deploy.repository",
    "pipelines.deploy.triton",
    "pipelines.registry.aliases",
    "pipelines.runtime",
)
INPUTS = ("dataset", "export", "gate", "register")
FAILPOINTS = ("staged", "loaded", "appended", "projected")
"""Beyond those of a commit: version in the repository, loaded in Triton, release in the ledger, aliases set."""
log = logging.getLogger(__name__)


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime, *, trigger: Trigger = "manual") -> Manifest:
    """Facts: ``outcome``, ``version`` and ``seq`` (the release, None if there is none of this candidate).

    ``kept``: the gate did not promote, by its verdict in the ledger. ``already_released``: the candidate has served
    before; a candidate that was rolled back does not come back by running again. ``stale``: the champion is no longer
    the one it was judged against, or was released later than ``as_of``. ``promoted``: it serves. Whatever fails, the
    champion that serves goes on serving.
    """
    inputs = {step: storage.read_manifest(run_dir / step) for step in INPUTS}
    keys = {step: inputs[step].key for step in ("export", "gate", "register")}
    key = storage.step_key("rollout", STEP_VERSION, keys, {})

    def build(_folder: Path) -> Mapping[str, Any]:
        version, verdict = inputs["register"].facts["version"], _verdict(settings, run_dir, inputs)
        if verdict["decision"] != "promote":
            return {"outcome": "kept", "version": version, "seq": None}
        with repository.alone(settings.model_repository, params.case):
            outcome, release = _release(params, settings, run_dir, as_of, trigger, inputs, verdict["reason"])
        if outcome == "promoted":
            _project(settings, params.case)
        return {"outcome": outcome, "version": version, "seq": release.seq if release else None}

    return storage.commit(run_dir / "rollout", case=params.case, as_of=as_of, key=key, inputs=keys, build=build)


def _verdict(settings: Settings, run_dir: Path, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    """The verdict on this very candidate as it stands in the ledger; what a file says of it decides nothing.

    Raises IntegrityError if the ledger has none of this gate run, or one of the steps belongs to another candidate.
    """
    export, gate, registered = (inputs[step] for step in ("export", "gate", "register"))
    evaluate = storage.read_manifest(run_dir / "evaluate")
    found = ledger.verdict(settings.ledger, export.case, gate.facts.get("verdict_sha256", ""), gate_key=gate.key)
    judged = (found["gate_key"], gate.inputs.get("evaluate"), evaluate.inputs.get("export"), registered.inputs)
    if judged != (gate.key, evaluate.key, export.key, {"gate": gate.key, "export": export.key}):
        raise IntegrityError(
            f"{run_dir}: the verdict that its gate cites ({found['hash'][:12]}) is not the one on this candidate "
            f"({export.key[:12]}): "
            "run evaluate, gate and register again"
        )
    verdict: dict[str, Any] = found["verdict"]
    return verdict


def _release(
    params: Params,
    settings: Settings,
    run_dir: Path,
    as_of: datetime,
    trigger: Trigger,
    inputs: Mapping[str, Manifest],
    reason: str,
) -> tuple[str, Release | None]:
    case, candidate_key, version = inputs["export"].case, inputs["export"].key, inputs["register"].facts["version"]
    history = ledger.releases(settings.ledger, case)
    head = history[-1] if history else None
    earlier = [release for release in history if release.candidate_key == candidate_key]
    if earlier:
        # A try that died after the ledger's row finds its own release still serving: that is its promotion.
        mine = earlier[-1] is head and earlier[-1].action == "promote" and earlier[-1].champion == version
        return ("promoted" if mine else "already_released"), earlier[-1]
    if (head.champion if head else None) != inputs["dataset"].facts["champion"] or (head and as_of < head.as_of):
        return "stale", None

    def append() -> Release:
        return ledger.append(
            settings.ledger,
            case=case,
            expected_seq=head.seq if head else 0,
            champion=version,
            candidate_key=candidate_key,
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger=trigger,
            reason=reason,
            actor=settings.who,
            mlflow_run=inputs["register"].facts["mlflow_run"],
            verdict_hash=inputs["gate"].facts["verdict_sha256"],
            as_of=as_of,
        )

    fields = load_fields(case)
    try:
        release = rollout.promote(settings, fields, version, run_dir / "export", append, params.serving.device)
    except ConflictError as error:
        log.warning("%s", error)
        return "stale", None
    try:
        rollout.restore(settings, fields, params.serving.device)
    except PerennialError as error:
        log.warning(
            "%s: version %d serves, but old versions were not put in order (reconcile will): %s", case, version, error
        )
    return "promoted", release


def _project(settings: Settings, case: str) -> None:
    """The aliases follow; a release is not undone because MLflow is down."""
    try:
        aliases.project(settings, case)
    except PerennialError as error:
        log.warning("%s: aliases are behind the ledger (reconcile will mend them): %s", case, error)
    storage.failpoint("rollout", "projected")
