"""Atomic, content-addressed storage: a folder appears whole, with its manifest, or not at all.

A step builds its files in a temporary folder beside the target; they are fsynced, the manifest is
written last, and one ``rename`` publishes the folder. ``rename`` onto an existing folder fails, so of
two tries the first to commit wins and a zombie gives way. Failpoints name every point at which a
process may die; tests kill it there and run the step again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.contracts import Manifest
from pipelines.errors import ConfigError, IntegrityError

MANIFEST = "manifest.json"
FAILPOINTS = ("build", "files", "manifest", "publish", "published")
"""Where ``PERENNIAL_FAILPOINT=<step>:<point>`` sends SIGKILL: before building, after the files, after the
manifest, before the rename, after it."""

CODE = ("pipelines", "plugins", "dags", "serving", "embedded")
"""The repository's folders whose files do the work."""

log = logging.getLogger(__name__)
_ROOT = Path(__file__).parent.parent


def wall_time() -> datetime:
    """The wall clock in UTC, for audit and provenance only: no key and no decision depends on it."""
    return datetime.now(UTC)  # noqa: TID251 - the one clock that provenance may read


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


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def fsync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    _fsync(path, os.O_DIRECTORY)


def _fsync(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_durable(paths: Collection[Path]) -> None:
    """Make files' bytes and folders' entries durable, many at once.

    A file system commits together what is asked for together: 800 paths take a third of the time of one by one.
    """
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(paths)))) as pool:
        list(pool.map(_fsync, paths))


def make_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, each durable: nothing in it is lost with its name."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def usual_mode(most: int) -> int:
    """What this process's umask leaves of a file mode, for what begins as its owner's alone (mkstemp, mkdtemp)."""
    status = Path("/proc/self/status").read_text()
    return most & ~int(status.partition("Umask:")[2].split()[0], 8)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader sees the old bytes or the new ones, never a part."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, usual_mode(0o666))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Like :func:`write_atomic` where nothing is yet; of several writers the first one's bytes stay. Returns whether they are these."""
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")  # containers that share a volume have equal process ids
    write_atomic(beside, data)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


def read_manifest(folder: Path, *, verify: bool = False) -> Manifest:
    """Read a committed folder's manifest; ``verify`` also checks every file's sha256.

    Raises ConfigError if the step has not run, IntegrityError if the bytes are not those committed.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run the step {folder.name!r} first, with the same case and as_of") from error
    except ValidationError as error:
        raise IntegrityError(f"{path} is not a manifest: {error.error_count()} mistake(s); move the folder away and run again") from error
    if verify:
        for name, expected in manifest.files.items():
            found = file_sha256(folder / name) if (folder / name).exists() else "missing"
            if found != expected:
                raise IntegrityError(f"{folder / name} has sha256 {found[:12]}, its manifest says {expected[:12]}: move the folder away and run again")
    return manifest


def find(folder: Path, key: str) -> Path:
    """The folder of the artefact ``key``: ``folder``, or the one that a later commit of another key set aside.

    Raises IntegrityError if neither holds it.
    """
    for path in (folder, *sorted(folder.parent.glob(f"{folder.name}.{key[:12]}.*"))):
        if (path / MANIFEST).exists() and read_manifest(path).key == key:
            return path
    raise IntegrityError(f"{folder} does not hold the artefact {key[:12]}, nor does a folder set aside next to it: restore the run's folder")


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
    holds the same key with all its files, nothing runs and the manifest found is returned. A folder with another
    key, or without a file that its manifest names, is set aside (never deleted): a change of parameters loses nothing.
    """
    step = folder.name
    try:
        found = read_manifest(folder)
    except ConfigError:
        found = None
    if found is not None and found.key == key:
        lost = [name for name in found.files if not (folder / name).exists()]
        if not lost:
            log.info("%s: no-op, key %s is already there", step, key[:12])
            return found
        log.warning("%s: %s lost %s: it is made again", step, folder, ", ".join(lost))
    make_folder(folder.parent)
    _sweep(folder)
    failpoint(step, "build")
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{step}.{os.getpid()}."))
    try:
        facts = json.loads(canonical_json(dict(build(work))))
        built = [path for path in work.rglob("*") if path.is_file() or path.is_dir()]
        make_durable(built)
        names = sorted(str(path.relative_to(work)) for path in built if path.is_file())
        failpoint(step, "files")
        manifest = Manifest(
            step=step,
            case=case,
            as_of=as_of,
            key=key,
            inputs=dict(inputs),
            files={name: file_sha256(work / name) for name in names},
            facts=facts,
            provenance=provenance(),
        )
        write_atomic(work / MANIFEST, manifest.model_dump_json(indent=1).encode())
        failpoint(step, "manifest")
        work.chmod(usual_mode(0o777))
        if found is not None:
            os.replace(folder, folder.with_name(f"{step}.{found.key[:12]}.{work.name.rsplit('.', 1)[-1]}"))
        failpoint(step, "publish")
        try:
            os.rename(work, folder)
        except OSError:
            other = read_manifest(folder)
            log.warning("%s: another try committed key %s first; giving way", step, other.key[:12])
            return other
    finally:
        shutil.rmtree(work, ignore_errors=True)
    fsync_folder(folder.parent)
    failpoint(step, "published")
    return manifest


def _sweep(folder: Path) -> None:
    """Remove what dead tries left beside ``folder``; a live try's folder names a running pid."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        pid = path.name.split(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


@cache
def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def _lock_sha256() -> str:
    lock = _ROOT / "requirements.lock"
    return file_sha256(lock) if lock.exists() else ""


def _dirty() -> bool:
    """Whether files that git knows have changed, or code lies beside them that it does not know, ignored or not."""
    unknown = ("ls-files", "--others", "--exclude=__pycache__", "--exclude=.*", "--", *CODE)
    return bool(_git("status", "--porcelain", "--untracked-files=no") or _git(*unknown))


def provenance() -> dict[str, Any]:
    """Where work came from: commit, uncommitted changes, lock hash, wall time. Beside the key, never in it.

    Without a repository ``commit`` and ``dirty`` are None: nobody knows.
    """
    commit = _git("rev-parse", "HEAD") or None
    return {
        "commit": commit,
        "dirty": None if commit is None else _dirty(),
        "lock": _lock_sha256(),
        "written_at": wall_time().isoformat(),
    }
