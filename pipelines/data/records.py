"""What of the prediction log is compacted: by segment its partitions, with the hashes that readers check.

A compaction leaves one record in ``lake/<case>/<kind>/segments/``, named by its own hash, once all that it names is
durable. Records add up, in any order; when there are many, or one has to be taken back, a compaction writes one in
place of all. Releases before this one left a marker for each segment, ``<segment>.json``: they count, and the next
compaction takes them into its record.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from pipelines import objects
from pipelines.errors import IntegrityError
from pipelines.files import file_sha256, sha256_once, write_atomic

SPREAD = "spread"
"""The place of the rows of a segment that lie in more hours than it may have partitions."""
MEND = "remove that folder, it is made again from the segments by the next run of the step"
_PREFIX = "compacted-"
_MOST = 32
"""Records beside each other before one takes the place of all."""

log = logging.getLogger(__name__)


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A partition: where below ``lake/<case>/<kind>`` it lies, and the sha256 of its bytes.

    Its place is, say, ``date=2020-05-01/hour=07``. Markers of before this release say where only (``sha256`` is empty).
    """

    place: str
    sha256: str = ""


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a segment's lines.

    ``size`` are its bytes when it was read, ``spread`` the days of its part in ``SPREAD``.
    """

    segment: str
    rows: int
    torn: int
    malformed: int
    parts: list[Part]
    size: int = -1
    spread: list[str] = []

    @property
    def hashed(self) -> bool:
        """Whether its partitions can be checked."""
        return all(part.sha256 for part in self.parts)


class _Record(msgspec.Struct, frozen=True):
    segments: list[Done]


class _Marker(msgspec.Struct, frozen=True):
    """A segment's marker of before; the first ones named no partitions, and vouch for nothing."""

    rows: int
    torn: int
    malformed: int
    partitions: list[str] | None = None


_RECORD = msgspec.json.Decoder(_Record)
_MARKER = msgspec.json.Decoder(_Marker)
Stamp = tuple[str, int, int, int]


@dataclass(frozen=True)
class Known:
    """All records of one folder: what is done, and which files that makes.

    Files are named by day and by their path below ``lake/<case>/<kind>``.
    """

    segments: dict[str, Done] = field(default_factory=dict)
    days: dict[str, dict[str, set[Part]]] = field(default_factory=lambda: defaultdict(dict))
    spread: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By the path of a file in ``SPREAD`` the days of its rows."""
    sources: tuple[str, ...] = ()
    damaged: list[str] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """Count a segment in."""
        self.segments[done.segment] = done
        for part in done.parts:
            name = f"{part.place}/{done.segment}.parquet"
            days = [part.place.partition("/")[0].removeprefix("date=")]
            if part.place == SPREAD:
                days = done.spread
                self.spread[name].update(days)
            for day in days:
                self.days[day].setdefault(name, set()).add(part)


def read(folder: Path) -> Known:
    """What the records in ``folder`` say, read once for as long as they stay as they are.

    One that cannot be read counts for nothing, with a warning: its segments are compacted again.
    """
    while True:
        try:
            with os.scandir(folder) as entries:
                stamps = sorted(
                    _stamp(entry) for entry in entries if entry.name.endswith(".json") and entry.name[0] != "."
                )
            return _loaded(folder, tuple(stamps))
        except FileNotFoundError:
            if not folder.exists():
                return Known()  # else: another compaction put one record in place of several meanwhile


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    found = entry.stat()
    return entry.name, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _loaded(folder: Path, stamps: tuple[Stamp, ...]) -> Known:
    known = Known(sources=tuple(name for name, *_ in stamps))
    for name, *_ in stamps:
        with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 - there may be many of an earlier release
            found = _segments(folder, name, file.read())
        if found is None:
            known.damaged.append(name)
        for done in found or ():
            known.add(done)
    return known


def _segments(folder: Path, name: str, data: bytes) -> list[Done] | None:
    """What a record or a marker says; None if it is damaged."""
    try:
        if not name.startswith(_PREFIX):
            marker = _MARKER.decode(data)
            if marker.partitions is None:
                return []
            parts = [Part(place) for place in marker.partitions]
            return [Done(name.removesuffix(".json"), marker.rows, marker.torn, marker.malformed, parts)]
        if name == _name(data):
            return _RECORD.decode(data).segments
        log.error("%s/%s does not hold what was written: its segments are compacted again", folder, name)
    except msgspec.MsgspecError:
        log.warning("%s/%s cannot be read; its segments are compacted again", folder, name)
    return None


def _name(data: bytes) -> str:
    return f"{_PREFIX}{hashlib.sha256(data).hexdigest()[:16]}.json"


def keep(folder: Path, fresh: Iterable[Done], known: Known) -> None:
    """Record the segments in ``fresh``, which were compacted on what was ``known``."""
    new = {done.segment: done for done in fresh}
    unlike = bool(known.damaged) or any(not name.startswith(_PREFIX) for name in known.sources)
    replaces = unlike or len(known.sources) >= _MOST or not known.segments.keys().isdisjoint(new)
    if replaces:
        new = known.segments | new
    data = msgspec.json.encode(_Record([new[name] for name in sorted(new)]))
    written = _name(data)
    objects.put(folder / written, data)
    write_atomic(folder / written, data)
    if not replaces:
        return
    for name in set(known.sources) - {written}:
        objects.forget(folder / name)
        (folder / name).unlink(missing_ok=True)


def is_whole(folder: Path, done: Done) -> bool:
    """Whether every partition of a segment is there, or in the store, where it was put before it was recorded."""
    if done.hashed and objects.covers(folder):
        return True
    # Strings: a Path for each of a hundred thousand partitions takes longer than looking for them.
    return all(os.path.exists(f"{folder}/{part.place}/{done.segment}.parquet") for part in done.parts)  # noqa: PTH110


def hashed(folder: Path, done: Done) -> Done:
    """A segment that an earlier release has compacted, with the hashes of its partitions as they are now."""
    files = {part.place: folder / part.place / f"{done.segment}.parquet" for part in done.parts}
    return msgspec.structs.replace(done, parts=[Part(place, file_sha256(file)) for place, file in files.items()])


def checked(folder: Path, files: Iterable[Path], days: Iterable[str]) -> list[Path]:
    """``files``, those of ``days`` below ``folder``, in order, with what was spread of those days.

    Each file is hashed once for as long as it stays as it is. Raises IntegrityError for one that is not what was
    compacted, and for one that is missing. Files that no record names are of a compaction that goes on, or of a release
    that kept no hashes.
    """
    known = read(folder / "segments")
    wanted = {name: parts for day in days for name, parts in known.days.get(day, {}).items()}
    paths = {name: folder / name for name in wanted}
    objects.need(*paths.values())
    found = {str(file.relative_to(folder)): file for file in files}
    found |= {name: path for name, path in paths.items() if name in known.spread}
    for name, parts in wanted.items():
        path = paths[name]
        expected = {part.sha256 for part in parts}
        try:
            right = "" in expected or sha256_once(path) in expected
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{path} is missing, with rows that were compacted: run the step 'profile' or 'ingest' again, which "
                f"makes it of its segment {Path(name).stem}; if that is gone too, restore one of them from a backup"
            ) from error
        except OSError as error:
            raise IntegrityError(
                f"a partition in {path.parent} cannot be read ({path.name}: {error.strerror}): {MEND}"
            ) from error
        if not right:
            raise IntegrityError(
                f"a partition in {path.parent} is damaged ({path.name} does not hold what was compacted): {MEND}"
            )
        found.setdefault(name, path)
    return [found[name] for name in sorted(found)]
