"""A place of its own for one test in a real PostgreSQL."""

from __future__ import annotations

import secrets

from sqlalchemy import create_engine, text


def fresh_schema(url: str) -> str:
    """The URL of an empty schema in the database ``url``: cheaper than a database of its own."""
    name = f"test_{secrets.token_hex(6)}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return f"{url}?options=-csearch_path%3D{name}"
