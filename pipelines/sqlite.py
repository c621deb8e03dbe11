"""SQLite files that several processes open at once."""

from __future__ import annotations

import sqlite3
import time

PAUSE_SECONDS = 0.01


def write_ahead(connection: sqlite3.Connection, seconds: float) -> None:
    """Let a file be read while it is written (its write-ahead log, https://sqlite.org/wal.html).

    Whoever comes while another connection writes to a file that has none yet, or gives it one, waits at most so many
    ``seconds``: the connection's own timeout does not hold for that. Raises sqlite3.OperationalError after that.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return
