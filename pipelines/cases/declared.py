"""A source that a case declares in params.yaml instead of writing a source.py: files, or a table somewhere.

``resolve`` and ``rows`` are what a source.py would have, so whoever reads a case's rows cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipelines.cases import declared_delta, declared_files, declared_iceberg, declared_sql, load_fields
from pipelines.cases.columns import Asked, together
from pipelines.cases.receiving import Received, note, receive
from pipelines.cases.sources import Source
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError
from pipelines.params import Columns, DeltaSource, FilesSource, IcebergSource, LogSource, Params, SqlSource
from pipelines.settings import Settings


def resolve(settings: Settings, params: Params) -> Source:
    """Find the declared files, or the table.

    Raises ConfigError for an address or a login that cannot be used, DataError if what it leads to cannot be read,
    Unavailable if nothing answers there.
    """
    declared = _declared(params)
    if isinstance(declared, SqlSource):
        return declared_sql.resolve(declared, settings, params.case)
    if isinstance(declared, DeltaSource):
        return declared_delta.resolve(declared, settings, params.case)
    if isinstance(declared, IcebergSource):
        return declared_iceberg.resolve(declared, settings, params.case)
    assert isinstance(declared, FilesSource)
    return declared_files.resolve(declared, settings, params.case)


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window`` with their labels. Nothing is kept of a reading that fails."""
    received = received_of(source, together(pieces(source, window, params)), window, params)
    note(params.case, received)
    return received.rows


def pieces(source: Source, window: Window, params: Params) -> Iterator[pl.DataFrame]:
    """The rows of ``window`` as the source has them, under our names: some at once, in any order.

    What each kind of a source gives is said in :func:`pipelines.cases.columns.pieces`.
    """
    asked = Asked(load_fields(params.case), _declared(params), window)
    if isinstance(source, declared_sql.Database):
        return declared_sql.pieces(source, asked)
    if isinstance(source, declared_files.Files):
        return declared_files.pieces(source, asked)
    if isinstance(source, declared_delta.Delta):
        return declared_delta.pieces(source, asked)
    if isinstance(source, declared_iceberg.Iceberg):
        return declared_iceberg.pieces(source, asked)
    raise DataError(f"{params.case}: the declared source is not resolved: resolve it first")


def received_of(source: Source, frame: pl.DataFrame, window: Window, params: Params) -> Received:
    """What becomes of rows of a source: pieces of it put together. Raises DataError in words for a declared source."""
    try:
        return receive(frame, load_fields(params.case), window, params)
    except DataError as error:
        words = str(error).replace("in source.py", "in the data or by a query, or write a source.py")
        raise DataError(f"{words} ({source.name})") from error


def _declared(params: Params) -> Columns:
    if isinstance(params.declared_source, LogSource):
        raise ConfigError(
            f"{params.case}: source.kind is log: the case has no rows but those that the gateway has logged, and they "
            "are no history to play; run a training, or declare a source that has one"
        )
    if params.declared_source is None:
        raise ConfigError(f"{params.case}: params.yaml declares no source: give source.kind, like files or sql")
    return params.declared_source
