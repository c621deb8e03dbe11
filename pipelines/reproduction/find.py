"""A registered version's folders, wherever later runs may have set them aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines import ledger, objects, storage
from pipelines.contracts import Manifest
from pipelines.errors import ConfigError, IntegrityError
from pipelines.line.order import EVALUATE, EXPORT, TRAIN
from pipelines.settings import Settings

RECORD = "record.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Version:
    """Folders and manifests by step (dataset, train, export, and evaluate if it ran) of one version."""

    number: int
    folders: dict[str, Path]
    manifests: dict[str, Manifest]


def find(settings: Settings, case: str, number: int) -> Version:
    """The run that made version ``number`` of a case, by the ledger's releases and the runs' register manifests.

    Raises ConfigError for a version that nobody registered, IntegrityError if a folder or a file of its run is
    missing, or if what training left is not what its manifest says.
    """
    export = _export(settings, case, number)
    exported = storage.read_manifest(export, verify=False)
    folders = {EXPORT.name: export}
    for step in EXPORT.reads:
        folders[step.name] = storage.find(export.parent / step.name, exported.inputs[step.name], verify=False)
    for path in sorted(export.parent.glob(f"{EVALUATE.name}*")):
        if not (path / storage.MANIFEST).exists():
            continue
        if storage.read_manifest(path, verify=False).inputs.get(EXPORT.name) == exported.key:
            folders[EVALUATE.name] = path
    declared = {step: storage.read_manifest(folder, verify=False).files for step, folder in folders.items()}
    wanted = {**declared, TRAIN.name: {RECORD: "", **declared[TRAIN.name]}}
    missing = [
        folders[step] / name for step, names in wanted.items() for name in names if not (folders[step] / name).exists()
    ]
    if missing:
        raise IntegrityError(
            f"{case} version {number}: {', '.join(map(str, missing))} missing: "
            "it cannot be reproduced; restore the run's folder"
        )
    # Not the dataset: rows that have changed are a finding, not a refusal.
    manifests = {
        step: storage.read_manifest(folder, verify=step in {TRAIN.name, EXPORT.name})
        for step, folder in folders.items()
    }
    return Version(number, folders, manifests)


def _export(settings: Settings, case: str, number: int) -> Path:
    registered = _registered(settings, case)
    keys = {candidate: folder for version, candidate, folder in registered if version == number}
    released = [release for release in ledger.releases(settings.ledger, case) if release.champion == number]
    if released:
        return storage.find(settings.root / released[-1].bundle, released[-1].candidate_key, verify=False)
    if not keys:
        known = ", ".join(map(str, sorted({version for version, _, _ in registered}))) or "none"
        raise ConfigError(
            f"{case} has no version {number} in {settings.root}: registered are {known}; "
            "PERENNIAL_HOME says where to look"
        )
    ((key, folder),) = list(keys.items())[-1:]
    return storage.find(folder / EXPORT.name, key, verify=False)


def _registered(settings: Settings, case: str) -> list[tuple[int, str, Path]]:
    """``(version, key of its export, the run's folder)`` of everything a run of the case registered."""
    objects.refresh_all(settings.root / "artefacts" / case, "register", every=True)
    manifests = sorted((settings.root / "artefacts" / case).glob("*/register*/manifest.json"))
    found = [(storage.read_manifest(path.parent, verify=False), path.parent.parent) for path in manifests]
    return [(int(manifest.facts["version"]), manifest.inputs[EXPORT.name], folder) for manifest, folder in found]
