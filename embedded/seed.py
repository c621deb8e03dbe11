"""`python -m embedded.seed`: what a new full stack starts with.

Run once by compose, and running it again changes nothing. The reference data that data.dvc pins goes into
``PERENNIAL_DATA_DIR``, byte for byte (DVC itself would want a git checkout); then the live cases' DAGs are set going,
which trains their first champions.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import yaml

from embedded import probe
from embedded.airflow import client
from embedded.live import open_live_cases
from pipelines.errors import IntegrityError, PerennialError
from pipelines.files import write_atomic
from pipelines.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent


def reference_data(target: Path, root: Path = ROOT) -> list[str]:
    """Put the files that ``root/data.dvc`` pins into ``target``; returns the names of those that were not there yet.

    Raises IntegrityError if a file of ``root/dvc_remote`` is not the one that is pinned.
    """
    store = root / "dvc_remote" / "files" / "md5"
    listing = json.loads(_pinned(store, yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]))
    new = []
    for entry in listing:
        path = target / entry["relpath"]
        if path.exists() and _md5(path.read_bytes()) == entry["md5"]:
            continue
        write_atomic(path, _pinned(store, entry["md5"]))
        new.append(entry["relpath"])
    return new


def _pinned(store: Path, md5: str) -> bytes:
    path = store / md5[:2] / md5[2:]
    try:
        found = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error}): the checkout is not complete") from error
    if _md5(found) != md5.removesuffix(".dir"):
        raise IntegrityError(f"{path} is not the file that data.dvc pins: restore it from git")
    return found


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def main() -> int:
    """Seed the stack of the settings; 0 if every live case has a champion then."""
    try:
        settings = read_settings()
        target = settings.data_dir or settings.root / "data"
        print(f"reference data in {target}: {', '.join(reference_data(target)) or 'all there'}", flush=True)
        live = open_live_cases(
            settings.airflow_url, settings.root, lambda line: print(line, flush=True), client(settings)
        )
        champions = {release.case: release.champion for release in probe.champions(settings.root)}
    except PerennialError as error:
        print(f"seed: {error}", file=sys.stderr)
        return error.exit_code
    for case in live:
        print(f"{case}: {_serving(champions.get(case))}")
    if set(live) <= set(champions):
        return 0
    return 1


def _serving(version: int | None) -> str:
    if version is None:
        return "no champion yet: look at its training run in Airflow"
    return f"version {version} serves"


if __name__ == "__main__":
    sys.exit(main())
