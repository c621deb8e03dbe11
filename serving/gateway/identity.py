"""One answer per ``prediction_id``: an index of the prediction log, consulted for ids that clients made.

The log is the truth; the index (SQLite, one file per case, shared by all workers) is made from it again
when it is missing, behind, ahead, or from before a reboot. Its write lock is what makes two workers with
the same id agree: look up, log and remember are one transaction, so the second one finds the first's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from pipelines.contracts import DEFAULT, PredictionLine
from pipelines.errors import IntegrityError, NoRoom, PerennialError, Unavailable
from pipelines.faults import of_disk
from pipelines.files import locked
from pipelines.segments import CLOSED, OPEN
from pipelines.segments import read as read_closed
from pipelines.sqlite import write_ahead
from serving.gateway.log import Position
from serving.gateway.refusal import Refused

FORMAT = "5"
PATIENCE_SECONDS = 2.0
REBUILD_SECONDS = 300.0
_PAUSE_SECONDS = 0.002
_PATIENCE = f"PRAGMA busy_timeout = {int(PATIENCE_SECONDS * 1000)}"
"""How long a request waits for another worker's transaction, and a starting worker for another's rebuild."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, event_us INTEGER NOT NULL, received_us INTEGER NOT NULL,
    version INTEGER NOT NULL, prediction INTEGER NOT NULL, score REAL NOT NULL, by_default INTEGER NOT NULL,
    arm TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_INSERT = """
INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    digest = excluded.digest, event_us = excluded.event_us, received_us = excluded.received_us,
    version = excluded.version, prediction = excluded.prediction, score = excluded.score,
    by_default = excluded.by_default, arm = excluded.arm
    WHERE excluded.received_us < answers.received_us
"""
_BATCH = 10_000

log = logging.getLogger(__name__)
_line = msgspec.json.Decoder(PredictionLine)
_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """What was answered for an id first.

    A digest of the features by name, event time and receipt in microseconds since 1970, version, prediction and score,
    whether these are the declared default, and the row's arm if a rollout was under way.
    """

    id: str
    digest: bytes
    event_us: int
    received_us: int
    version: int
    prediction: int | float
    score: float
    by_default: bool = False
    arm: str = ""


def digest(features: Sequence[Any]) -> bytes:
    """16 bytes that stand for these values in their order."""
    return hashlib.blake2b(_encode(features), digest_size=16).digest()


def _as_decoded(value: Any) -> str | float | bool | list[float] | None:
    """A logged value as a request's decoder gives it: every number is a float."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, list):
        return [float(number) for number in value]
    return float(value)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


class Index:
    """The answered ids of one case, for whoever holds the case's ``alone``.

    :meth:`catch_up` comes before anybody does.
    """

    def __init__(self, path: Path, folder: Path, names: Sequence[str]) -> None:
        """``folder`` holds the case's prediction segments, ``names`` are its fields in declared order."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._folder = folder
        self._places = sorted(range(len(names)), key=names.__getitem__)
        self._names = [names[place] for place in self._places]
        self._connection, self._inode = _connect(path)

    def digest(self, features: Sequence[Any]) -> bytes:
        """What stands for the features, given in declared order: the same whatever order the fields are declared in."""
        return digest([features[place] for place in self._places])

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def find(self, ids: Iterable[str]) -> dict[str, Answer]:
        """The answers of those ids that have one."""
        query = (
            "SELECT id, digest, event_us, received_us, version, prediction, score, by_default, arm FROM answers "
            "WHERE id IN (SELECT value FROM json_each(?))"
        )
        try:
            return {row[0]: Answer(*row) for row in self._connection.execute(query, (_encode(list(ids)).decode(),))}
        except sqlite3.Error as error:
            raise self._away(error) from error

    async def begin(self) -> None:
        """Become the only writer of all workers; other requests go on while another one writes.

        Unavailable if that takes longer than :data:`PATIENCE_SECONDS`. :meth:`writing` has to follow, without an await.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._begun():
            if time.monotonic() > deadline:
                raise self._away(sqlite3.OperationalError("another worker writes"))
            await asyncio.sleep(_PAUSE_SECONDS)

    def _begun(self) -> bool:
        """Whether nobody else was writing: sqlite's own way of waiting would hold up the whole worker."""
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise self._away(error) from error
            return False
        finally:
            self._connection.execute(_PATIENCE)
        return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What has begun ends with the block: by commit, or by rollback if it raises."""
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._away(error) from error
            raise

    def remember(self, answers: Iterable[Answer], position: Position) -> None:
        """Keep new answers and that the log is indexed up to ``position``; inside :meth:`writing`."""
        self._connection.executemany(_INSERT, answers)
        self.mark(position)

    def mark(self, position: Position) -> None:
        """Keep that a segment is indexed up to ``position``."""
        query = "INSERT INTO segments VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET bytes = max(bytes, excluded.bytes)"
        self._connection.execute(query, (position.segment, position.end))

    def catch_up(self) -> int:
        """Index what the log holds beyond the index, which is made anew if it is damaged; returns the lines read."""
        try:
            lines = self._caught_up()
        except PerennialError as error:
            if not _is_damage(error.__cause__):
                raise
            damaged = self._connection  # open until it is replaced: nothing else has its inode's number meanwhile
            self._connection, self._inode = _connect(self._path, self._inode)
            damaged.close()
            lines = self._caught_up()
        if lines:
            log.info("%s: %d line(s) of the log indexed", self._path, lines)
        return lines

    def _caught_up(self) -> int:
        self._connection.execute(f"PRAGMA busy_timeout = {int(REBUILD_SECONDS * 1000)}")
        try:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise self._away(error) from error
            with self.writing():
                return self._catch_up()
        finally:
            self._connection.execute(_PATIENCE)

    def _catch_up(self) -> int:
        # synchronous=OFF survives a killed process, not a power cut: what is older than the running system is not
        # believed.
        facts = dict(self._connection.execute("SELECT name, value FROM facts"))
        wanted = {"format": FORMAT, "boot": _boot_id()}
        paths = {path.name.removesuffix(OPEN): path for path in sorted(self._folder.glob("[!.]*.jsonl*"))}
        done = dict(self._connection.execute("SELECT name, bytes FROM segments"))
        ahead = any(name in paths and _size(paths[name]) < size for name, size in done.items())
        if facts != wanted or ahead:
            # Dropped, not emptied: another format may have other columns. Statement by statement, as executescript
            # would commit.
            for table in ("answers", "segments", "facts"):
                self._connection.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO facts VALUES (?, ?)", wanted.items())
            done = {}
        return sum(self._index(path, name, done.get(name, 0)) for name, path in paths.items())

    def _index(self, path: Path, name: str, start: int) -> int:
        try:
            file = _opened(path)
        except FileNotFoundError:
            return 0
        with file:
            if os.fstat(file.fileno()).st_size <= start:
                return 0
            if Path(file.name).suffix == CLOSED:
                try:
                    read_closed(Path(file.name))
                except IntegrityError as error:  # whole lines are still the best there is to find a repeated id by
                    log.error("%s", error)  # noqa: TRY400 - it says all there is to say
            file.seek(start)
            end = start
            answers = []
            count = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn, or being written just now
                end += len(line)
                count += 1
                answers += self._answer(line)
                if len(answers) >= _BATCH:
                    self._connection.executemany(_INSERT, answers)
                    answers = []
        self.remember(answers, Position(name, start, end))
        return count

    def _answer(self, line: bytes) -> list[Answer]:
        """The line's answer; nothing for a line without one, or of other fields than today's."""
        try:
            value: Any = _line.decode(line)
            if value["score"] is None:  # imported, and answered by nobody
                return []
            features = digest([_as_decoded(value["row"][field]) for field in self._names])
            happened, received = (
                microseconds(datetime.fromisoformat(value[name])) for name in ("event_time", "received_at")
            )
            return [
                Answer(
                    value["prediction_id"],
                    features,
                    happened,
                    received,
                    value["version"],
                    value["prediction"],
                    value["score"],
                    value.get("outcome") == DEFAULT,
                    value.get("arm", ""),
                )
            ]
        except (ValueError, KeyError, TypeError):
            return []

    def _away(self, error: sqlite3.Error) -> PerennialError:
        """What a request is told, without a path of the server's, which the log has."""
        log.error("%s: %s", self._path, error)
        if isinstance(of_disk(error), NoRoom):
            return Refused(
                507,
                "log",
                (
                    "the disk of the gateway is full: nothing was answered or logged; make room, then send the request "
                    "again"
                ),
            )
        return Unavailable(
            f"the index of prediction ids does not answer ({error}): nothing was answered; "
            "try again, and see the gateway's log"
        )


def _is_damage(error: BaseException | None) -> bool:
    """Whether an error says that a file is no database, or not a whole one."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _connect(path: Path, damaged: int | None = None) -> tuple[sqlite3.Connection, int]:
    """A connection, and the inode of its file: another one than ``damaged``.

    One worker at a time: else one could remove what another has just made anew, and each would have ids of its own.
    """
    with locked(path.parent):
        if damaged is not None and path.exists() and path.stat().st_ino == damaged:
            _remove(path)
        try:
            connection = _prepared(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            _remove(path)
            connection = _prepared(path)
        return connection, path.stat().st_ino


def _remove(path: Path) -> None:
    log.warning("%s is damaged: it is made anew from the log", path)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _prepared(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=REBUILD_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        write_ahead(connection, REBUILD_SECONDS)
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_TABLES)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _opened(path: Path) -> BinaryIO:
    """The segment, which a living worker may have closed meanwhile. Raises FileNotFoundError if it has no line left."""
    with suppress(FileNotFoundError):
        return path.open("rb")
    return path.with_name(path.name.removesuffix(OPEN)).open("rb")


def _size(path: Path) -> int:
    try:
        with _opened(path) as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return json.dumps(None)
