"""Atomic, content-addressed storage: a folder appears whole, with its manifest, or not at all.

A step builds its files in a temporary folder beside the target (files.py); they are fsynced, the manifest is
written last, and one ``rename`` publishes the folder. ``rename`` onto an existing folder fails, so of
two tries the first to commit wins and a zombie gives way. Failpoints name every point at which a
process may die; tests kill it there and run the step again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines import objects
from pipelines.contracts import Manifest
from pipelines.errors import ConfigError, IntegrityError, NotKept
from pipelines.files import (
    file_sha256,
    fsync_folder,
    make_durable,
    make_folder,
    sha256_once,
    usual_mode,
    work_folder,
    write_atomic,
)
from pipelines.provenance import provenance

MANIFEST, DAMAGED = objects.MANIFEST, objects.DAMAGED
FAILPOINTS = ("build", "files", "manifest", "publish", "published")
"""Where ``PERENNIAL_FAILPOINT=<step>:<point>`` sends SIGKILL: before building, after the files, after the
manifest, before the rename, after it."""
STORE_FAILPOINTS = ("put", "stored")
"""The same where the state folder has a store: the files are there and nothing names them, or all of it is there."""

MEND = "move the folder away and run again"
"""What helps against a folder that is not as it was committed: a step makes the same again of the same inputs."""

log = logging.getLogger(__name__)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_jsonable)


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def step_key(step: str, version: int, inputs: Mapping[str, str], declared: Any) -> str:
    """The identity of a step's work: its name and version, its inputs' keys, the parameters it declares."""
    return digest({"step": step, "version": version, "inputs": dict(inputs), "params": declared})


def failpoint(step: str, point: str) -> None:
    """Die here by SIGKILL if ``PERENNIAL_FAILPOINT`` names this point (tests only; free otherwise).

    It is ``<step>:<point>``, for every process that comes by, or ``@<folder>``: then a process dies for each file
    ``<step>:<point>.*`` that it finds and removes there, so that the next try lives.
    """
    asked = os.environ.get("PERENNIAL_FAILPOINT", "")
    if asked == f"{step}:{point}" or (asked.startswith("@") and _taken(Path(asked[1:]), f"{step}:{point}.*")):
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(folder: Path, pattern: str) -> bool:
    """Whether this process was the one to remove a file."""
    for path in sorted(folder.glob(pattern)):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        return True
    return False


def read_manifest(folder: Path, *, verify: bool | Collection[str] = True) -> Manifest:
    """Read a committed folder's manifest, and check the sha256 of every file that it names.

    What is read next is what was committed. ``verify`` names the files that matter instead, or is False for who reads
    none of them. A file is hashed once per process as long as it does not change. Raises ConfigError if the step has
    not run, IntegrityError if the bytes are not those committed.
    """
    path = folder / MANIFEST
    if not path.exists():
        objects.refresh(folder)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: run the step {folder.name!r} first, with the same case and as_of"
        ) from error
    except ValidationError as error:
        raise IntegrityError(f"{path} is not a manifest: {error.error_count()} mistake(s); {MEND}") from error
    if manifest.sha256 and manifest.sha256 != _sealed(manifest).sha256:
        raise IntegrityError(f"{path} is not what was written: its own sha256 is another; {MEND}")
    wanted = manifest.files if verify is True else verify or ()
    for name, expected in manifest.files.items():
        if name in wanted and (found := _found(folder / name)) != expected:
            raise IntegrityError(f"{folder / name} has sha256 {found[:12]}, its manifest says {expected[:12]}: {MEND}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write a folder's manifest with the sha256 of its own content, and return it so."""
    sealed = _sealed(manifest)
    write_atomic(folder / MANIFEST, sealed.model_dump_json(indent=1).encode())
    return sealed


def _sealed(manifest: Manifest) -> Manifest:
    """The manifest with the sha256 of its own content."""
    return manifest.model_copy(update={"sha256": digest(manifest.model_dump(mode="json", exclude={"sha256"}))})


def _found(path: Path) -> str:
    try:
        return sha256_once(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"


def find(folder: Path, key: str, *, verify: bool | Collection[str] = True) -> Path:
    """The folder of the artefact ``key``: ``folder``, or the one that a later commit of another key set aside.

    Its files are checked as by :func:`read_manifest`. Raises NotKept if neither holds it, IntegrityError if it is
    damaged.
    """
    path = _holding(folder, key)
    if path is None and objects.bring(folder, key):
        path = _holding(folder, key)
    if path is not None:
        read_manifest(path, verify=verify)
        return path
    raise NotKept(
        f"{folder} does not hold the artefact {key[:12]}, nor does a folder set aside next to it: "
        "restore the run's folder"
    )


def _holding(folder: Path, key: str) -> Path | None:
    for path in (folder, *sorted(folder.parent.glob(f"{folder.name}.{key[:12]}.*"))):
        if (path / MANIFEST).exists() and read_manifest(path, verify=False).key == key:
            return path
    return None


def commit(
    folder: Path,
    *,
    case: str,
    as_of: datetime,
    key: str,
    inputs: Mapping[str, str],
    build: Callable[[Path], Mapping[str, Any]],
) -> Manifest:
    """Publish the work ``key`` as ``folder`` exactly once; ``folder.name`` is the step.

    ``build`` fills an empty folder with files and returns the manifest's facts. If the folder already
    holds the same key with all its files as they were, nothing runs and the manifest found is returned. A folder with
    another key, or with a file that is missing or damaged, is set aside (never deleted): a change of parameters loses
    nothing. Raises IntegrityError if the manifest that is there cannot be read.
    """
    step = folder.name
    newest = objects.refresh(folder)
    try:
        found = read_manifest(folder, verify=False)
    except ConfigError:
        found = None
    aside = "" if found is None else found.key[:12]
    if found is not None and found.key == key:
        try:
            read_manifest(folder)
        except IntegrityError as error:
            log.warning("%s: it is made again: %s", step, error)
            aside = f"{DAMAGED}{aside}"  # a name that nobody looks for
        else:
            log.info("%s: no-op, key %s is already there", step, key[:12])
            return found
    make_folder(folder.parent)
    failpoint(step, "build")
    with work_folder(folder) as work:
        facts = json.loads(canonical_json(dict(build(work))))
        built = [path for path in work.rglob("*") if path.is_file() or path.is_dir()]
        make_durable(built)
        names = sorted(str(path.relative_to(work)) for path in built if path.is_file())
        failpoint(step, "files")
        manifest = write_manifest(
            work,
            Manifest(
                step=step,
                case=case,
                as_of=as_of,
                key=key,
                inputs=dict(inputs),
                files={name: file_sha256(work / name) for name in names},
                facts=facts,
                provenance=provenance(),
            ),
        )
        failpoint(step, "manifest")
        if not objects.publish(folder, work, newest, lambda: failpoint(step, "put")):
            objects.refresh(folder)
            return _gave_way(step, folder)
        failpoint(step, "stored")
        work.chmod(usual_mode(0o777))
        if found is not None:
            os.replace(folder, folder.with_name(f"{step}.{aside}.{work.name.rsplit('.', 1)[-1]}"))
        failpoint(step, "publish")
        try:
            os.rename(work, folder)
        except OSError:
            return _gave_way(step, folder)
    fsync_folder(folder.parent)
    failpoint(step, "published")
    return manifest


def _gave_way(step: str, folder: Path) -> Manifest:
    other = read_manifest(folder)
    log.warning("%s: another try committed key %s first; giving way", step, other.key[:12])
    return other
