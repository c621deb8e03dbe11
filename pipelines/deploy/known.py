"""Which versions of a case are known, and where their bundles are: by releases, else by runs that registered them."""

from __future__ import annotations

from typing import Any

from pipelines import ledger, objects, storage
from pipelines.deploy import switch
from pipelines.errors import ConfigError, ConflictError, IntegrityError
from pipelines.settings import Settings
from pipelines.storage import MANIFEST


def target(settings: Settings, case: str, version: int) -> dict[str, Any]:
    """What a release of a known version says of it (``switch.TARGET``).

    Known is one that was released before, or that a training run registered. Raises ConfigError for any other,
    IntegrityError if the verdict on it is gone.
    """
    return _released(settings, case, version) or _registered(settings, case, version)


def promoted(
    settings: Settings, case: str, version: int, serves: str, *, despite_verdict: bool = False
) -> dict[str, Any]:
    """:func:`target` of a version that the gate promoted, by its verdict in the ledger, or ``despite_verdict``.

    Raises ConflictError, saying what ``serves``, where the verdict is another one.
    """
    found = target(settings, case, version)
    verdict = {}
    if found["verdict_hash"]:
        verdict = ledger.verdict(settings.ledger, case, found["verdict_hash"])["verdict"]
    if verdict.get("decision") == "promote" or despite_verdict:
        return found
    said = f"{verdict['decision']} ({verdict.get('reason')})" if verdict else "missing"
    raise ConflictError(
        f"{case}: nothing was changed: {serves}; the verdict on version {version} is {said}: "
        "add --despite-verdict to release it all the same"
    )


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
    registered = set[int]()
    objects.refresh_all(settings.root / "artefacts" / case, "register", every=True)
    for path in sorted((settings.root / "artefacts" / case).glob(f"*/register*/{MANIFEST}")):
        manifest, run_dir = storage.read_manifest(path.parent, verify=False), path.parent.parent
        registered.add(manifest.facts["version"])
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
    shown = ", ".join(map(str, sorted(registered))) or "none"
    raise ConfigError(f"{case} has no version {version} in {settings.root}: registered are {shown}; see `history`")
