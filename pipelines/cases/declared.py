"""A source that a case declares in params.yaml instead of writing a source.py: files, or a table of a database.

``resolve`` and ``rows`` are what a source.py would have, so whoever reads a case's rows cannot tell the difference.
"""

from __future__ import annotations

import polars as pl

from pipelines.cases import declared_files, declared_sql, load_fields
from pipelines.cases.columns import Asked
from pipelines.cases.receiving import note, receive
from pipelines.cases.sources import Source
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError
from pipelines.params import FilesSource, Params, SqlSource
from pipelines.settings import Settings


def resolve(settings: Settings, params: Params) -> Source:
    """Find the declared files, or the database.

    Raises ConfigError for an address or a login that cannot be used, DataError if what it leads to cannot be read,
    Unavailable if nothing answers there.
    """
    declared = _declared(params)
    if isinstance(declared, SqlSource):
        return declared_sql.resolve(declared, settings, params.case)
    return declared_files.resolve(declared, settings, params.case)


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window`` with their labels. Nothing is kept of a reading that fails."""
    fields = load_fields(params.case)
    asked = Asked(fields, _declared(params), window)
    if isinstance(source, declared_sql.Database):
        frame = declared_sql.read(source, asked)
    elif isinstance(source, declared_files.Files):
        frame = declared_files.read(source, asked)
    else:
        raise DataError(f"{params.case}: the declared source is not resolved: resolve it first")
    try:
        received = receive(frame, fields, window, params)
    except DataError as error:
        words = str(error).replace("in source.py", "in the data or by a query, or write a source.py")
        raise DataError(f"{words} ({source.name})") from error
    note(params.case, received)
    return received.rows


def _declared(params: Params) -> FilesSource | SqlSource:
    if params.declared_source is None:
        raise ConfigError(f"{params.case}: params.yaml declares no source: give source.kind, files or sql")
    return params.declared_source
