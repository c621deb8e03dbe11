"""Atomic, content-addressed storage: a folder appears whole, with its manifest, or not at all.

A step builds its files in a temporary folder beside the target; they are fsynced, the manifest is
written last, and one ``rename`` publishes the folder. ``rename`` onto an existing folder fails, so of
two tries the first to commit wins and a zombie gives way. Failpoints name every point at which a
process may die; tests kill it there and run the step again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.contracts import Manifest
from pipelines.errors import ConfigError, IntegrityError, NotKept

MANIFEST = "manifest.json"
FAILPOINTS = ("build", "files", "manifest", "publish", "published")
"""Where ``PERENNIAL_FAILPOINT=<step>:<point>`` sends SIGKILL: before building, after the files, after the
manifest, before the rename, after it."""

MEND = "move the folder away and run again"
"""What helps against a folder that is not as it was committed: a step makes the same again of the same inputs."""

DAMAGED = "damaged-"
"""Before the key in the name of a folder that was set aside as it was not as committed.

``<step>.damaged-<key>.<random>``.
"""

CODE = ("pipelines", "plugins", "dags", "serving", "embedded")
"""The repository's folders whose files do the work."""

_WRITERS = 8
"""Live writers of one file at once whose temporary files the next writer looks for."""
_TEMPORARY = re.compile(r"\..+\.(\d|[a-z0-9_]{8})")
"""Names of temporary files; releases before had eight random letters at the end."""

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


def write_atomic(path: Path, data: bytes, *, durable: bool = True, mode: int | None = None) -> None:
    """Replace ``path`` by ``data``: a reader sees the old bytes or the new ones, never a part.

    What killed writes of ``path`` left beside it is removed. Who writes many files at once says ``durable=False``, and
    makes them so together (:func:`make_durable`). ``mode`` is the file's mode; by default what the umask leaves of
    0666.
    """
    make_folder(path.parent) if durable else path.parent.mkdir(parents=True, exist_ok=True)
    with _written_beside(path, data, durable=durable, mode=mode) as work:
        os.replace(work, path)
    if durable:
        fsync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Like :func:`write_atomic` where nothing is yet; of several writers the first one's bytes stay.

    Returns whether they are these.
    """
    make_folder(path.parent)
    try:
        with _written_beside(path, data) as work:
            os.link(work, path)
    except FileExistsError:
        return False
    fsync_folder(path.parent)
    return True


@contextmanager
def _written_beside(path: Path, data: bytes, *, durable: bool = True, mode: int | None = None) -> Iterator[Path]:
    """A temporary file with ``data`` beside ``path``, locked as long as its writer lives.

    What is left of it goes at the end.
    """
    fd, work = _temporary(path)
    try:
        try:
            with os.fdopen(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fchmod(fd, usual_mode(0o666) if mode is None else mode)
            if durable:
                os.fsync(fd)
            yield work
        finally:
            if _is_at(fd, work):
                work.unlink()
    finally:
        os.close(fd)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file ``.<name>.<number>`` beside ``path``, open and locked; what dead writers of ``path`` left is removed.

    Few fixed names: what was left is found by looking for it, without listing a folder of 20,000 files.
    """
    names = [path.with_name(f".{path.name}.{number}") for number in range(_WRITERS)]
    for name in names:
        _remove_dead(name)
    for name in names:
        with suppress(FileExistsError):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, name):
                return fd, name
            os.close(fd)  # taken for a dead one's before it was locked
    fd, other = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    return fd, Path(other)


def _is_at(fd: int, path: Path) -> bool:
    """Whether ``path`` names the open file, and not another one by now."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _remove_dead(path: Path) -> bool:
    """Remove a temporary file or a work folder if its process is dead, in whatever container it ran.

    Returns whether it was. Its lock is free then.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(fd, path):
            return False
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError:
        return False  # it lives, or it is not ours to remove
    finally:
        os.close(fd)
    return True


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed writes left in ``folder`` and below, also of older releases.

    Returns how many. The next write of the same file does it by itself; this finds those that nobody writes again.
    """
    found = [Path(above, name) for above, _, names in os.walk(folder) for name in names if _TEMPORARY.fullmatch(name)]
    return sum(map(_remove_dead, found))


def read_manifest(folder: Path, *, verify: bool | Collection[str] = True) -> Manifest:
    """Read a committed folder's manifest, and check the sha256 of every file that it names.

    What is read next is what was committed. ``verify`` names the files that matter instead, or is False for who reads
    none of them. A file is hashed once per process as long as it does not change. Raises ConfigError if the step has
    not run, IntegrityError if the bytes are not those committed.
    """
    path = folder / MANIFEST
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


_hashed: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Of files that were hashed: what their inode said then (a write changes its times), and the sha256."""


def sha256_once(path: Path) -> str:
    """Like :func:`file_sha256`, once per process as long as the file does not change.

    Raises OSError if it cannot be read.
    """
    stat = path.stat()
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    known = _hashed.get(path)
    if known is None or known[0] != state:
        # Taken before the file is read: what is written meanwhile is hashed again.
        known = _hashed[path] = (state, file_sha256(path))
    return known[1]


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
    for path in (folder, *sorted(folder.parent.glob(f"{folder.name}.{key[:12]}.*"))):
        if (path / MANIFEST).exists() and read_manifest(path, verify=False).key == key:
            read_manifest(path, verify=verify)
            return path
    raise NotKept(
        f"{folder} does not hold the artefact {key[:12]}, nor does a folder set aside next to it: "
        "restore the run's folder"
    )


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
        work.chmod(usual_mode(0o777))
        if found is not None:
            os.replace(folder, folder.with_name(f"{step}.{aside}.{work.name.rsplit('.', 1)[-1]}"))
        failpoint(step, "publish")
        try:
            os.rename(work, folder)
        except OSError:
            other = read_manifest(folder)
            log.warning("%s: another try committed key %s first; giving way", step, other.key[:12])
            return other
    fsync_folder(folder.parent)
    failpoint(step, "published")
    return manifest


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, locked as long as its process works in it; what dead ones left there is removed.

    A lock says whether a try lives in whatever container or process namespace it is; a process id does not.
    """
    prefix = f".{folder.name}."
    above = _locked(folder.parent)
    try:
        for path in folder.parent.glob(f"{prefix}*"):
            # The work of an unfinished training has a lock of its own, and its checkpoints stay.
            if path.name.removeprefix(prefix).split(".")[0].isdigit():
                _remove_dead(path)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{prefix}{os.getpid()}."))
        lock = _locked(work)
    finally:
        os.close(above)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


@cache
def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def _lock_sha256() -> str:
    lock = _ROOT / "requirements.lock"
    if lock.exists():
        return file_sha256(lock)
    return ""


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
