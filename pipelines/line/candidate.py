"""The candidate of a run, as a release needs it: what the run's manifests and the ledger say of it."""

from __future__ import annotations

from typing import Any

from pipelines import ledger
from pipelines.deploy.stages import Candidate
from pipelines.errors import IntegrityError
from pipelines.line.facts import GateFacts, RegisterFacts
from pipelines.line.step import Read, Run


def promoted(run: Run, read: Read) -> Candidate | None:
    """The run's candidate; None: the gate did not promote it. Raises what :func:`_verdict` raises."""
    verdict = _verdict(run, read)
    if verdict["decision"] != "promote":
        return None
    registered = RegisterFacts.of(read["register"])
    return Candidate(
        version=registered.version,
        candidate_key=read["export"].key,
        bundle=str((run.dir / "export").relative_to(run.settings.root)),
        mlflow_run=registered.mlflow_run,
        verdict_hash=GateFacts.of(read["gate"]).verdict_sha256,
        trigger=run.trigger,
        as_of=run.as_of,
        reason=verdict["reason"],
    )


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
