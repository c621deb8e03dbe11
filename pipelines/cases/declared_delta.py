"""A declared Delta table: one version of it, of which only the files that may hold a window's rows are opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases import columns
from pipelines.cases.addresses import hidden, login, secrets_of, tells, under
from pipelines.cases.columns import Asked
from pipelines.cases.sources import Source, places
from pipelines.errors import ConfigError, DataError, PerennialError, Unavailable
from pipelines.faults import said
from pipelines.params import DeltaSource
from pipelines.settings import Settings

PROTOCOLS = ("s3", "s3a", "gs", "abfs", "abfss", "az", "file")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|↳")
_LOGIN = ("403", "401", "Forbidden", "AccessDenied", "Unauthorized", "InvalidAccessKeyId", "credential", "permission")
_NOT_THERE = ("404", "NoSuchBucket", "not found", "No such file")


@dataclass(frozen=True)
class Delta(Source):
    """A Delta table as it was at ``version``; ``id`` is the table's own, which one of the same place may not have."""

    version: int = 0
    id: str = ""
    pinned: bool = False
    table: Any = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict, repr=False)

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values, with what was read."""
        return Source(self.name, self.kind, self.why, self.notice).facts() | {"version": self.version, "table": self.id}


def resolve(declared: DeltaSource, settings: Settings, case: str) -> Delta:
    """The table at its newest version, or the declared one.

    Raises DataError if there is none, ConfigError for an address that cannot be used or a refused login, Unavailable if
    a store does not answer.
    """
    try:
        from deltalake import DeltaTable
    except ImportError as error:
        raise ConfigError(
            f"{case}: a Delta table needs the Python package deltalake, which is not installed: pip install deltalake, "
            f"as the extra delta in pyproject.toml does ({said(error)})"
        ) from error
    address, why = _address(declared.url, settings, case)
    of = under("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if address.startswith("s3") else under("", "")
    options = {name: str(value) for name, value in login(declared.login_from, of, settings, case).items()}
    secrets = secrets_of(options)
    try:
        table = DeltaTable(address, version=declared.version, storage_options=options or None)
        version, name = table.version(), str(table.metadata().id)
    except Exception as error:
        raise _refused(error, f"{case}: the Delta table {declared.url}", declared.version, secrets) from error
    return Delta(
        declared.url,
        "real",
        why,
        declared.notice,
        version=version,
        id=name,
        pinned=declared.version is not None,
        table=table,
        options=options,
    )


def _address(url: str, settings: Settings, case: str) -> tuple[str, str]:
    """Where the table is, and in words how it was found."""
    protocol, _, rest = url.partition("://")
    if rest and protocol not in PROTOCOLS:
        raise ConfigError(
            f"{case}: source.url {url} begins with {protocol}://: choose {', '.join(PROTOCOLS)}, or give a path"
        )
    if rest and protocol != "file":
        return url, "named in params.yaml"
    path = Path(rest or url)
    folders = [(Path("/"), "named in params.yaml")] if path.is_absolute() else places(settings)
    for folder, why in folders:
        if (folder / path).is_dir():
            return str(folder / path), f"{folder / path}: {why}"
    looked = ", ".join(str(folder / path) for folder, _ in folders)
    raise DataError(
        f"{case}: there is no Delta table {looked}: write it there, set PERENNIAL_DATA_DIR to the folder that holds "
        "it, or mend source.url in params.yaml"
    )


def pieces(source: Delta, asked: Asked) -> Iterator[pl.DataFrame]:
    """The rows of a window, piece by piece (:func:`pipelines.cases.columns.pieces`)."""
    where = f"{asked.fields.case}: the Delta table {source.name}, version {source.version}"
    try:
        frame = pl.scan_delta(source.table, storage_options=source.options or None)
        yield from columns.pieces([frame], asked, where)
    except PerennialError:
        raise
    except Exception as error:
        pinned = source.version if source.pinned else None
        raise _refused(error, where, pinned, secrets_of(source.options), reading=True) from error


def _refused(
    error: Exception, where: str, version: int | None, secrets: tuple[str, ...], *, reading: bool = False
) -> ConfigError | DataError | Unavailable:
    """What deltalake or polars says, as one of our errors."""
    words = hidden(" ".join(_COLOURS.sub("", said(error)).split()), secrets)
    if tells(words, _LOGIN):
        return ConfigError(
            f"{where} refuses the login ({words}): give source.login_from, or the store's own variables, a login "
            "that may read it (docs/cases.md)"
        )
    if reading and isinstance(error, FileNotFoundError):
        mend = "try again" if version is None else "declare a newer version, or leave source.version out"
        kind = Unavailable if version is None else DataError
        return kind(f"{where}: a file of it is gone, as after a vacuum ({words}): {mend}")
    if (not reading and type(error).__name__ == "TableNotFoundError") or tells(words, _NOT_THERE):
        return DataError(f"{where} is not there ({words}): mend source.url in params.yaml, or write it there")
    if type(error).__module__ == "_internal":
        if version is not None and "version" in words:
            return DataError(f"{where} has no version {version} ({words}): declare another, or leave it out")
        return DataError(f"{where} cannot be read ({words}): mend the table, or source in params.yaml")
    if isinstance(error, pl.exceptions.PolarsError):
        return DataError(f"{where} cannot be read ({words}): mend the table, or source in params.yaml")
    return Unavailable(f"{where} does not answer ({words}): try again, or mend source.url in params.yaml")
