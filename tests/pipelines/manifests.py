"""Manifests of what a test has changed in a committed folder."""

from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.files import file_sha256


def renew(folder: Path, **changes: Any) -> None:
    """Write a folder's manifest anew for the files that lie there now, with ``changes``.

    It is as if they had been committed so.
    """
    manifest = storage.read_manifest(folder, verify=False)
    files = {name: file_sha256(folder / name) for name in manifest.files}
    storage.write_manifest(folder, manifest.model_copy(update={"files": files, **changes}))
