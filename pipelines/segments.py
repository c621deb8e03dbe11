"""The prediction log's segments as files: which are open, how one is closed, and how the gateway is asked to.

A worker of the gateway holds a lock on the segment that it writes (``<worker>-<number>.jsonl.open``), and closes it by
one rename to ``.jsonl``. A closed segment never changes, and only closed ones are read; its seal (``.sha256`` beside
it, as sha256sum writes and checks it) is there before it is. Whoever needs the rows of an open one replaces a small
file, the request; the gateway's workers watch it, close what they hold, and take up what dead workers left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Literal

from pipelines.errors import IntegrityError
from pipelines.files import fsync_folder, make_folder, write_atomic
from pipelines.storage import failpoint

OPEN = ".open"
CLOSED = ".jsonl"
SEAL = ".sha256"
Name = str | Sequence[str | int]
"""A segment's name, or ``[prefix, first, last]`` for many (:func:`packed`)."""
Kind = Literal["predictions", "labels", "refusals", "traffic", "shadow", "figures"]
KINDS: tuple[Kind, ...] = ("predictions", "labels")
"""What rows, and judgements of them, are made of."""
COMPACTED: tuple[Kind, ...] = (*KINDS, "refusals")
"""What becomes part of the lake: beside those rows, how many others were refused, by reason and field."""
EVERY: tuple[Kind, ...] = (*COMPACTED, "traffic", "shadow", "figures")
"""The folders that segments lie in: beside those of the lake, what the arms of a rollout did, for its guard alone, and
figures of the business, for its experiment alone.
"""
RECORDS = "segments"
"""The folder, beside a kind's compacted files, that says which segments they were made of."""
Segments = Mapping[str, Sequence[Name]]
"""Segments of each kind by their names."""
Stamp = tuple[int, int] | None

_NUMBERED = re.compile(r"(.*-)(\d{6})")
_LAST = 999_999
_PAUSE_SECONDS = 0.05
_YOUNG_SECONDS = 60.0


def opened(folder: Path) -> list[Path]:
    """The open segments in ``folder`` that hold something."""
    found = []
    for path in sorted(folder.glob(f"[!.]*.jsonl{OPEN}")):
        with suppress(FileNotFoundError):  # closed meanwhile
            if path.stat().st_size:
                found.append(path)
    return found


def adopt(folder: Path) -> int:
    """Close the segments that dead workers left open; returns how many.

    A torn last line, which was never acknowledged, is cut off.
    """
    count = 0
    for path in sorted(folder.glob(f"[!.]*.jsonl{OPEN}")):
        with suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its worker lives
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(_whole_lines(file.fileno()))
                finish(file.fileno(), path)
                count += 1
    for path in folder.glob(f".*.jsonl{OPEN}"):  # a worker died between two system calls
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:  # noqa: TID251 - the age of a file, no event
                path.unlink()
    return count


def put(parts: Iterable[tuple[Path, Iterable[bytes]]]) -> list[Path]:
    """Write closed segments, paths that end in ``.jsonl``, each of its pieces of whole lines.

    None can be seen before all of them are on the disk; one that is seen is whole, and closed by whoever finds it if
    this process dies. Raises OSError if one cannot be written: then none is there.
    """
    ready: list[tuple[BufferedRandom, Path, Path]] = []
    with ExitStack() as held:
        try:
            for path, pieces in parts:
                make_folder(path.parent)
                hidden = path.with_name(f".{path.name}{OPEN}")
                file = held.enter_context(hidden.open("xb+"))
                ready.append((file, hidden, path))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            for _, hidden, _ in ready:
                hidden.unlink(missing_ok=True)
            raise
        failpoint("segments", "written")
        for file, hidden, path in ready:
            seen = path.with_name(path.name + OPEN)
            os.rename(hidden, seen)
            finish(file.fileno(), seen)
            failpoint("segments", "closed")
    return [path for _, _, path in ready]


def finish(fd: int, path: Path) -> None:
    """Make an open segment durable, seal it and rename it; one without a line is removed.

    ``fd``, which can be read, stays open.
    """
    os.fdatasync(fd)
    if os.fstat(fd).st_size:
        _write_seal(fd, path)
        with suppress(FileNotFoundError):  # renamed by the last try, which failed after that
            os.rename(path, path.with_name(path.name.removesuffix(OPEN)))
    else:
        path.unlink(missing_ok=True)
    fsync_folder(path.parent)


def seal(path: Path) -> Path:
    """Where the sha256 of a segment is kept, open or closed."""
    return path.with_name(f"{path.name.removesuffix(OPEN).removesuffix(CLOSED)}{SEAL}")


def _write_seal(fd: int, path: Path) -> None:
    found = hashlib.sha256()
    at = 0
    while part := os.pread(fd, 1 << 20, at):
        found.update(part)
        at += len(part)
    target = seal(path)
    # Whoever closes a segment holds its lock: nobody else writes here, and what a dead one left is written over.
    beside = target.with_name(f".{target.name}")
    with beside.open("wb") as file:
        file.write(f"{found.hexdigest()}  {path.name.removesuffix(OPEN)}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, target)


def read(path: Path) -> tuple[bytes, bool]:
    """The bytes of a closed segment, and whether they are sealed.

    Segments of earlier releases, and files that were put there by hand, are not. Raises IntegrityError if the bytes
    are not those that were sealed.
    """
    data = path.read_bytes()
    try:
        expected = seal(path).read_text(errors="replace").partition(" ")[0]
    except FileNotFoundError:
        return data, False
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(
            f"the closed segment {path} is not what was written: bytes of it have changed or are missing, with rows "
            "that were answered or labels that were taken. Restore it from a backup; if there is none, remove "
            f"{seal(path).name} beside it: the lines that can still be read are then taken, the others quarantined"
        )
    return data, True


def missing(folder: Path, known: Callable[[str], bool]) -> list[Path]:
    """The segments in ``folder`` that are sealed and not there, of those that are not ``known`` by their names."""
    gone = []
    for path in folder.glob(f"[!.]*{SEAL}"):
        closed = path.with_suffix(CLOSED)
        # Open first: a segment that is renamed between two looks is then found by the second.
        if not (known(path.stem) or closed.with_name(closed.name + OPEN).exists() or closed.exists()):
            gone.append(closed)
    return sorted(gone)


def _whole_lines(fd: int) -> int:
    """The length of a file up to and with its last line end."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


# --- asking -------------------------------------------------------------------------------------


def close(folders: Iterable[Path], request: Path, seconds: float) -> list[Path]:
    """Have the open segments in ``folders`` closed; returns those that are open still, after at most ``seconds``.

    What dead workers left is closed here, where the log can be written; for the others the gateway is asked by
    ``request``.
    """
    folders = list(folders)
    for folder in folders:
        adopt(folder)
    waiting = [path for folder in folders for path in opened(folder)]
    if waiting:
        write_atomic(request, os.urandom(8).hex().encode())
    give_up = time.monotonic() + seconds
    while waiting and time.monotonic() < give_up:
        time.sleep(_PAUSE_SECONDS)
        waiting = [path for path in waiting if path.exists()]
    return waiting


def asked(request: Path) -> Stamp:
    """What tells one request from the next; None: nobody has asked yet."""
    try:
        found = request.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


# --- names --------------------------------------------------------------------------------------


def packed(names: Iterable[str]) -> list[Name]:
    """Names in few words, in order: ``[prefix, first, last]`` stands for all that a worker numbered from first to last.

    >>> packed(["b-000003", "b-000001", "b-000002", "day"])
    [['b-', 1, 3], 'day']
    """
    single, ranges = _sorted_out(names)
    many: list[Name] = [[prefix, first, last] for prefix, own in sorted(ranges.items()) for first, last in own]
    return [*many, *sorted(single)]


def beyond(names: Mapping[str, Sequence[str]], seen: Segments) -> dict[str, list[Name]]:
    """What of ``names`` is not in ``seen``, in few words: what a run keeps of the segments that were new to it."""
    known = {kind: among(seen[kind]) for kind in KINDS}
    return {kind: packed(name for name in names[kind] if not known[kind](name)) for kind in KINDS}


def among(names: Iterable[Name]) -> Callable[[str], bool]:
    """Whether a name is one of ``names``, packed or not.

    >>> [among([["b-", 1, 3], "day"])(name) for name in ("b-000002", "b-000004", "day", "c-000002")]
    [True, False, True, False]
    """
    single, ranges = _sorted_out(names)

    def holds(name: str) -> bool:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            return name in single
        number = int(match[2])
        own = ranges.get(match[1], [])
        at = bisect_right(own, (number, _LAST))
        return at > 0 and own[at - 1][1] >= number

    return holds


def _sorted_out(names: Iterable[Name]) -> tuple[set[str], dict[str, list[tuple[int, int]]]]:
    """Names without a number, and by prefix the numbers of the others.

    The numbers are ranges that neither touch nor overlap, in order.
    """
    single: set[str] = set()
    numbers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name in names:
        if not isinstance(name, str):
            prefix, first, last = name
            numbers[str(prefix)].append((int(first), int(last)))
        elif (match := _NUMBERED.fullmatch(name)) is not None:
            numbers[match[1]].append((int(match[2]), int(match[2])))
        else:
            single.add(name)
    return single, {prefix: _merged(own) for prefix, own in numbers.items()}


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
