"""Files and folders whose bytes are durable, that appear whole, and what killed writers of them left.

A live writer is known by its lock, in whatever container or process namespace it is; a process id says nothing there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITERS = 8
"""Live writers of one file at once whose temporary files the next writer looks for."""
_TEMPORARY = re.compile(r"\..+\.(\d|[a-z0-9_]{8})")
"""Names of temporary files; releases before had eight random letters at the end."""


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if durable:
        make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
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


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, locked as long as its process works in it; what dead ones left there is removed.

    A lock says whether a try lives in whatever container or process namespace it is; a process id does not.
    """
    prefix = f".{folder.name}."
    with locked(folder.parent):
        for path in folder.parent.glob(f"{prefix}*"):
            # The work of an unfinished training has a lock of its own, and its checkpoints stay.
            if path.name.removeprefix(prefix).split(".")[0].isdigit():
                _remove_dead(path)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{prefix}{os.getpid()}."))
        lock = _locked(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, as one process at a time, until the block ends; whoever comes meanwhile waits."""
    fd = _locked(folder)
    try:
        yield
    finally:
        os.close(fd)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd
