"""release: a version that is known serves, because a person names it."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from pipelines import ledger, objects, storage
from pipelines.cases import load_fields
from pipelines.contracts import Switch
from pipelines.deploy import repository, stages, switch
from pipelines.errors import ConfigError, ConflictError, IntegrityError
from pipelines.params import Params
from pipelines.registry import aliases
from pipelines.settings import Settings
from pipelines.storage import MANIFEST

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
        target = _released(settings, case, version) or _registered(settings, case, version)
        verdict = (
            ledger.verdict(settings.ledger, case, target["verdict_hash"])["verdict"] if target["verdict_hash"] else {}
        )
        if verdict.get("decision") != "promote" and not despite_verdict:
            said = f"{verdict['decision']} ({verdict.get('reason')})" if verdict else "missing"
            raise ConflictError(
                f"{case}: nothing was changed: {switch.told(head)}; the verdict on version {version} is {said}: "
                "add --despite-verdict to release it all the same"
            )
        fields = load_fields(case)
        release = switch.append(
            params, settings, fields, head, "release", target, reason=reason, actor=actor, as_of=as_of
        )
        storage.failpoint("release", "appended")
        switch.follow(params, settings, fields, aliases.project, f"{case}: version {version} is released")
    log.info("%s: %s", case, switch.told(release))
    return Switch(case=case, serves=version, was=head.champion, changed=True, release=release)


def _released(settings: Settings, case: str, version: int) -> dict[str, Any] | None:
    """What the newest release of a version says of it."""
    found = [release for release in ledger.releases(settings.ledger, case) if release.champion == version]
    if found:
        return found[-1].model_dump(include=switch.TARGET)
    return None


def _registered(settings: Settings, case: str, version: int) -> dict[str, Any]:
    """The same of a version that no release names, from the run that registered it.

    Its verdict is the ledger's, by that run's gate.
    """
    known = set[int]()
    objects.refresh_all(settings.root / "artefacts" / case, "register", every=True)
    for path in sorted((settings.root / "artefacts" / case).glob(f"*/register*/{MANIFEST}")):
        manifest, run_dir = storage.read_manifest(path.parent, verify=False), path.parent.parent
        known.add(manifest.facts["version"])
        if manifest.facts["version"] != version:
            continue
        gate = manifest.inputs["gate"]
        verdicts = [row["hash"] for row in ledger.verdicts(settings.ledger, case) if row["gate_key"] == gate]
        evaluated = storage.read_manifest(storage.find(run_dir / "gate", gate)).inputs["evaluate"]
        key = storage.read_manifest(storage.find(run_dir / "evaluate", evaluated)).inputs["export"]
        if not verdicts:
            raise IntegrityError(
                f"ledger of {case}: there is no verdict of the gate run {gate[:12]} of version {version}: "
                f"run the step gate of {run_dir} again"
            )
        return {
            "champion": version,
            "candidate_key": key,
            "bundle": str((run_dir / "export").relative_to(settings.root)),
            "mlflow_run": manifest.facts["mlflow_run"],
            "verdict_hash": verdicts[0],
        }
    shown = ", ".join(map(str, sorted(known))) or "none"
    raise ConfigError(f"{case} has no version {version} in {settings.root}: registered are {shown}; see `history`")
