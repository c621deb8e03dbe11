"""A place of its own for one test in a real PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import create_engine, text

from pipelines import ledger
from pipelines.errors import ConfigError
from pipelines.ledger import database


@contextmanager
def fresh_schema(url: str) -> Iterator[str]:
    """The URL of an empty schema in the database ``url``, cheaper than a database of its own.

    The connections that the test leaves are closed: the server has few for all tests.
    """
    name = f"test_{secrets.token_hex(6)}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    own = f"{url}?options=-csearch_path%3D{name}"
    try:
        yield own
    finally:
        # A test may leave tables there that are refused: nothing is connected then.
        with suppress(ConfigError):
            database.engine(own, ledger.metadata).dispose()
