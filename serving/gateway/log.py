"""The prediction log: JSON lines in segments, each line written before its reply is sent.

A killed process loses nothing that was acknowledged (the lines are in the kernel); a power cut at most the last
``sync_seconds``. A segment belongs to one worker, which holds a lock on it while it is open
(``<worker>-<number>.jsonl.open``), and is closed by one rename to ``.jsonl``, its sha256 beside it. Closed segments
never change. A step that needs rows of open ones asks for them to be closed (pipelines/segments.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.files import fsync_folder, make_folder
from pipelines.segments import OPEN, finish
from serving.gateway.refusal import Refused

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBED = 64 * 1024
"""Bytes that a log which refused less must be able to write before it counts as whole again."""

log = logging.getLogger(__name__)


def worker_name() -> str:
    """A name that no other worker has or had: start time, pid, random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}-{os.urandom(4).hex()}"


@dataclass
class Segment:
    """An open segment. ``size`` counts whole lines only."""

    fd: int
    path: Path
    born: float = field(default_factory=time.monotonic)
    size: int = 0
    synced: int = 0

    @property
    def name(self) -> str:
        """The name it will have when closed."""
        return self.path.name.removesuffix(OPEN)


@dataclass(frozen=True)
class Position:
    """Where an append went: the segment's closed name, and its size before and after."""

    segment: str
    start: int
    end: int


class Log:
    """One worker's segments of one folder. Used by the event loop, and by one thread that appends (:attr:`free`)."""

    def __init__(
        self, folder: Path, worker: str, *, max_bytes: int, max_seconds: float, on_error: Callable[[], None]
    ) -> None:
        make_folder(folder)
        self.folder = folder
        self._worker = worker
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._on_error = on_error
        self._number = 0
        self._current: Segment | None = None
        self._leaving: list[Segment] = []
        self.failing = ""
        """Why the last append was refused, until one is not or a tick finds that there is room for it."""
        self._refused = 0
        self.free = asyncio.Event()
        """Not set while a thread appends: no segment is retired or closed meanwhile, as it may take its lines back."""
        self.free.set()

    @property
    def closed(self) -> bool:
        """Whether no segment is open."""
        return self._current is None and not self._leaving

    def append(self, lines: bytes) -> Position:
        """Write whole lines; they are in the log when this returns.

        Refused (507 full, 503 other) if not, and then none of them is.
        """
        try:
            segment = self._current or self._open()
            self._current = segment
            _write(segment.fd, lines)
        except OSError as error:
            self._on_error()
            self._take_back()
            log.exception("the prediction log in %s cannot be written", self.folder)
            self._refused = len(lines)
            if error.errno in _FULL:
                self.failing = "the disk of the prediction log is full: make room"
                raise Refused(
                    507,
                    "log",
                    (
                        "the prediction log is full: nothing was answered or logged; make room, then send the request "
                        "again"
                    ),
                ) from error
            self.failing = "the prediction log cannot be written"
            raise Refused(
                503,
                "log",
                "the prediction log cannot be written: nothing was answered or logged; see the gateway's log",
            ) from error
        self.failing = ""
        start = segment.size
        segment.size += len(lines)
        position = Position(segment.name, start, segment.size)
        if segment.size >= self._max_bytes:
            self._retire()
        return position

    def undo(self, position: Position) -> None:
        """Take back the last append, which must not have been acknowledged."""
        for segment in (self._current, *self._leaving):
            if segment is not None and segment.name == position.segment and segment.size == position.end:
                segment.size = position.start
                self._cut(segment)

    def _open(self) -> Segment:
        self._number += 1
        path = self.folder / f"{self._worker}-{self._number:06d}.jsonl{OPEN}"
        hidden = path.with_name(f".{path.name}")
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            # Locked before it can be seen: whoever finds the file can tell that its worker lives.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(hidden, path)
        except OSError:
            os.close(fd)
            raise
        return Segment(fd, path)

    def _take_back(self) -> None:
        """After a failed write: remove the torn line, so that the next one starts on a line of its own."""
        if self._current is not None:
            self._cut(self._current)

    def _cut(self, segment: Segment) -> None:
        try:
            os.ftruncate(segment.fd, segment.size)
        except OSError:
            self._on_error()
            log.exception("%s: a torn line stays at its end; readers skip it", segment.path)
            if segment is self._current:
                self._retire()

    def _retire(self) -> None:
        if self._current is not None:
            self._leaving.append(self._current)
            self._current = None

    async def tick(self) -> list[Position]:
        """Make what was written durable and close segments that are full or old; returns the closed ones."""
        if self.failing:
            await asyncio.to_thread(self._probe)
        current = self._current
        if current is not None and time.monotonic() - current.born >= self._max_seconds and self.free.is_set():
            self._retire()
        elif current is not None and current.synced != current.size:
            size = current.size
            if await self._safely(_sync, current):
                current.synced = size
        ready = (segment for segment in list(self._leaving) if self.free.is_set())
        return [Position(segment.name, 0, segment.size) for segment in ready if await self._close(segment)]

    def _probe(self) -> None:
        """Find whether there is room for what was refused: without it, nobody would be sent here to find out."""
        path = self.folder / f".{self._worker}.probe"
        try:
            path.write_bytes(bytes(max(self._refused, PROBED)))
            self.failing = ""
        except OSError:
            log.warning("%s still cannot be written", self.folder)
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    async def close(self) -> list[Position]:
        """Close everything, also what is young, as soon as no thread appends."""
        while not self.free.is_set():
            await self.free.wait()
        self._retire()
        return await self.tick()

    async def _close(self, segment: Segment) -> bool:
        if not await self._safely(_finish, segment):
            return False
        self._leaving.remove(segment)
        return True

    async def _safely(self, act: Callable[[Segment], None], segment: Segment) -> bool:
        try:
            await asyncio.to_thread(act, segment)
        except OSError:
            self._on_error()
            log.exception("%s: sync or rename failed; it is tried again", segment.path)
            return False
        return True


def _write(fd: int, data: bytes) -> None:
    """All of ``data``: a disk that fills up takes a part first and refuses the rest."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync(segment: Segment) -> None:
    os.fdatasync(segment.fd)
    if not segment.synced:
        fsync_folder(segment.path.parent)  # its name too


def _finish(segment: Segment) -> None:
    finish(segment.fd, segment.path)
    os.close(segment.fd)
