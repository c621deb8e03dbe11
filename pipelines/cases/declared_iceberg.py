"""A declared Iceberg table: one snapshot of it, of which only the files that may hold a window's rows are opened.

The catalogue is described by pyiceberg's own file or variables, or by properties that are told like a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipelines.cases import columns
from pipelines.cases.addresses import connection, hidden, mapping, secrets_of, tells, told
from pipelines.cases.columns import Asked
from pipelines.cases.sources import Source
from pipelines.errors import ConfigError, DataError, PerennialError, Unavailable
from pipelines.faults import said
from pipelines.params import IcebergSource
from pipelines.settings import Settings

EXPECTED = "the catalogue's properties as YAML, like type: rest, uri: ..., credential: ..."
_LOGIN = (
    "Unauthorized",
    "Forbidden",
    "AccessDenied",
    "ACCESS_DENIED",
    "authentication failed",
    "OAuth",
    "InvalidAccess",
)
_AWAY = ("ConnectionError", "Timeout", "OperationalError", "ServiceUnavailable", "ServerError", "NETWORK_CONNECTION")


@dataclass(frozen=True)
class Iceberg(Source):
    """An Iceberg table as it was at ``snapshot``; None: it has none yet, and no rows. ``id`` is the table's own."""

    snapshot: int | None = None
    id: str = ""
    table: Any = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values, with what was read: the snapshot as a text, too long for JSON's numbers."""
        read = None if self.snapshot is None else str(self.snapshot)
        return Source(self.name, self.kind, self.why, self.notice).facts() | {"snapshot": read, "table": self.id}


def resolve(declared: IcebergSource, settings: Settings, case: str) -> Iceberg:
    """The table at its newest snapshot, or the declared one.

    Raises ConfigError if catalogue or table cannot be found or refuse the login, DataError if there is no such
    snapshot, Unavailable if the catalogue does not answer.
    """
    os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else polars warns that it does what it does
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise ConfigError(
            f"{case}: an Iceberg table needs the Python package pyiceberg, which is not installed: pip install "
            f"pyiceberg, as the extra iceberg in pyproject.toml does ({said(error)})"
        ) from error
    where = f"{case}: the Iceberg table {declared.table} of the catalogue {declared.catalog}"
    properties, why = _properties(declared, settings, case)
    secrets = _secrets(properties)
    try:
        # An SQL catalogue would else make its tables where there are none.
        table = load_catalog(declared.catalog, **{"init_catalog_tables": "false", **properties}).load_table(
            declared.table
        )
        known = [snapshot.snapshot_id for snapshot in table.snapshots()]
        newest = table.current_snapshot()
    except Exception as error:  # noqa: BLE001 - its libraries have no common base
        raise _refused(error, where, secrets) from _shown(error, secrets)
    snapshot = declared.snapshot
    if snapshot is None and newest is not None:
        snapshot = newest.snapshot_id
    if snapshot is not None and snapshot not in known:
        raise DataError(
            f"{where} has no snapshot {snapshot}, but {', '.join(map(str, known[-10:])) or 'none'}: declare one of "
            "them, or leave source.snapshot out"
        )
    return Iceberg(
        f"{declared.table} of {declared.catalog}",
        "real",
        why,
        declared.notice,
        snapshot=snapshot,
        id=str(table.metadata.table_uuid),
        table=table,
        secrets=secrets,
    )


def _properties(declared: IcebergSource, settings: Settings, case: str) -> tuple[dict[str, str], str]:
    """What describes the catalogue, and in words where that is told."""
    if declared.catalog_from is None:
        return {}, f"the catalogue {declared.catalog} of pyiceberg's own settings"
    found = told(declared.catalog_from, settings, case, key="source.catalog_from", expected=EXPECTED)
    if declared.catalog_from.connection is not None:
        given = connection(found, case)
        plain: Any = {
            "uri": given.host + (f":{given.port}" if given.port else ""),
            "credential": f"{given.login}:{given.password}" if given.login or given.password else None,
            **given.extra,
        }
    else:
        plain = mapping(found, case, EXPECTED)
    properties = {name: str(value) for name, value in plain.items() if value is not None and value != ""}
    return properties, f"{found.where} in params.yaml"


def _secrets(properties: Mapping[str, str]) -> tuple[str, ...]:
    password = None
    with suppress(ArgumentError, ValueError):
        password = make_url(properties.get("uri", "")).password
    return (*secrets_of(properties), *([password] if password else []))


def pieces(source: Iceberg, asked: Asked) -> Iterator[pl.DataFrame]:
    """The rows of a window, piece by piece (:func:`pipelines.cases.columns.pieces`)."""
    where = f"{asked.fields.case}: the Iceberg table {source.name}, snapshot {source.snapshot}"
    try:
        yield from columns.pieces([pl.scan_iceberg(source.table, snapshot_id=source.snapshot)], asked, where)
    except PerennialError:
        raise
    except Exception as error:  # noqa: BLE001 - its libraries have no common base
        raise _refused(error, where, source.secrets) from _shown(error, source.secrets)


def _shown(error: Exception, secrets: tuple[str, ...]) -> Exception | None:
    """The error as a cause, for a traceback, unless it holds a secret."""
    return error if hidden(str(error), secrets) == str(error) else None


def _refused(error: Exception, where: str, secrets: tuple[str, ...]) -> ConfigError | DataError | Unavailable:
    """What pyiceberg, its catalogue or polars says, as one of our errors."""
    words = hidden(said(error), secrets)
    if tells(words, _LOGIN) or isinstance(error, PermissionError):
        return ConfigError(
            f"{where} refuses the login ({words}): mend the catalogue's properties, or the store's login"
        )
    if type(error).__name__ in {"NoSuchTableError", "NoSuchNamespaceError", "NoSuchIcebergTableError"}:
        return ConfigError(f"{where} is not there ({words}): mend source.table in params.yaml")
    if isinstance(error, SQLAlchemyError) and "no such table" in words:
        return ConfigError(f"{where}: there is no catalogue at its address ({words}): mend its properties")
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{where}: a file of it is gone, as after snapshots were expired ({words}): declare a newer snapshot, or "
            "leave source.snapshot out"
        )
    if tells(words, _AWAY):
        return Unavailable(f"{where}: the catalogue or its store does not answer ({words}): try again, or mend it")
    if isinstance(error, pl.exceptions.PolarsError):
        return DataError(f"{where} cannot be read ({words}): mend the table, or source in params.yaml")
    if isinstance(error, OSError):
        return Unavailable(f"{where}: its store does not answer ({words}): try again, or mend the catalogue")
    return ConfigError(f"{where} cannot be used ({words}): mend the catalogue's properties, or source in params.yaml")
