"""Sources that are declared: where rows come from without any code of the case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.params.base import Strict


class Columns(Strict):
    """What every declared source says of its columns; docs/cases.md#a-source-without-code has the options in words.

    ``columns`` are the source's names by ours. ``id: null`` says that there is no id: one is made of a row's content.
    """

    columns: dict[str, str | None] = {}
    time_zone: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    label_values: tuple[str, ...] = ()
    notice: str = ""

    @model_validator(mode="after")
    def _names_are_there(self) -> Columns:
        for own, name in self.columns.items():
            if not name and (name == "" or own != "id"):
                raise ValueError(f"columns.{own} names no column: name one, or leave {own} out")
        return self

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, zone: str | None) -> str | None:
        try:
            return zone and ZoneInfo(zone).key
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{zone!r} is no time zone: give one like UTC or Europe/Berlin") from error

    @field_validator("label_values")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values) or len(values) == 1:
            raise ValueError('give every text that the label can be once, as in ["no", "yes"]')
        return values


class UrlFrom(Strict):
    """Where an address with its password is told: one of a file, a variable of the environment, a connection."""

    file: str | None = None
    env: str | None = None
    connection: str | None = None

    @model_validator(mode="after")
    def _one(self) -> UrlFrom:
        if sum(bool(one) for one in (self.file, self.env, self.connection)) != 1:
            raise ValueError("give one of {file: path}, {env: NAME} and {connection: id}")
        return self


class FilesSource(Columns):
    """Rows lie in files, here or in a store."""

    kind: Literal["files"]
    url: str | tuple[str, ...]
    format: Literal["parquet", "csv", "json"] | None = None
    separator: str = Field(default=",", min_length=1, max_length=1)
    nulls: tuple[str, ...] = ()
    login_from: UrlFrom | None = None
    """Where the store's login is told, as YAML or JSON of its library's own options, or a connection."""
    watermark: Literal["version"] | None = None
    """``version``: a file that has the version it had is not hashed again, nor opened for days that it has none of."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses, one or more."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @model_validator(mode="after")
    def _no_secrets(self) -> FilesSource:
        if not self.urls or not all(self.urls):
            raise ValueError("url is empty: give a path or an address")
        for url in self.urls:
            _without_login(url)
        return self


def _without_login(url: str) -> str:
    protocol, _, rest = url.partition("://")
    # abfs://container@account names no login.
    named = "@" in rest.partition("/")[0] and not protocol.startswith(("abfs", "az"))
    signed = {name.lower() for name, _ in parse_qsl(rest.partition("?")[2])} & SIGNATURES
    if named or signed:
        raise ValueError(
            "url has a login in it"
            + f" ({', '.join(sorted(signed))})" * bool(signed)
            + ": parameters hold no secrets; see docs/cases.md for where they go"
        )
    return url


SIGNATURES = {"sig", "signature", "token", "access_token", "api_key", "apikey", "password", "x-amz-signature"} | {
    "x-amz-security-token",
    "x-goog-signature",
}
"""Parameters of an address that let whoever knows it in."""


class Watermark(Strict):
    """A column that grows whenever a row is written, so that rows which were read are not asked for again."""

    column: Annotated[str, Field(min_length=1)]
    overlap_hours: float = Field(default=24.0, ge=0, le=24 * 366)
    """How late a row may become visible with an older watermark: long transactions, clocks that differ."""


class SqlSource(Columns):
    """Rows lie in a database."""

    kind: Literal["sql"]
    url_from: UrlFrom
    table: str | None = None
    query: str | None = None
    watermark: Watermark | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> SqlSource:
        if bool(self.table) == bool(self.query):
            raise ValueError("give a table or a query, one of both")
        return self

    @model_validator(mode="after")
    def _corrections_have_ids(self) -> SqlSource:
        if self.watermark is not None and self.columns.get("id", "id") is None:
            raise ValueError(
                "watermark needs an id: one that is made of a row's content changes with the content, and a row that "
                "was corrected would be two; name a column in columns.id, or leave watermark out"
            )
        return self


def _takes_no_watermark(given: Any) -> Any:
    if isinstance(given, Mapping) and "watermark" in given:
        raise ValueError(
            f"{given.get('kind')} takes no watermark: a version of the table is read as it is, and only the files that "
            "hold the window's rows are opened; remove it"
        )
    return given


class DeltaSource(Columns):
    """Rows lie in a Delta table, here or in a store."""

    kind: Literal["delta"]
    url: Annotated[str, Field(min_length=1)]
    login_from: UrlFrom | None = None
    """Where the store's login is told, as YAML or JSON of deltalake's own options, or a connection."""
    version: int | None = Field(default=None, ge=0)
    """``None``: the newest when a run begins."""

    _no_watermark = model_validator(mode="before")(_takes_no_watermark)

    @field_validator("url")
    @classmethod
    def _no_secrets(cls, url: str) -> str:
        return _without_login(url)


class IcebergSource(Columns):
    """Rows lie in an Iceberg table of a catalogue."""

    kind: Literal["iceberg"]
    catalog: Annotated[str, Field(min_length=1)]
    """The catalogue's name; without ``catalog_from`` pyiceberg's own file or variables describe it."""
    catalog_from: UrlFrom | None = None
    """Where the catalogue's properties are told, as YAML or JSON, or an Airflow connection."""
    table: Annotated[str, Field(min_length=1)]
    snapshot: int | None = None
    """``None``: the newest when a run begins."""

    _no_watermark = model_validator(mode="before")(_takes_no_watermark)


class LogSource(Strict):
    """Rows are those that went through the gateway: the case has no other history."""

    kind: Literal["log"]


Declared = FilesSource | SqlSource | DeltaSource | IcebergSource | LogSource
DECLARED: dict[str, type[Declared]] = {
    "files": FilesSource,
    "sql": SqlSource,
    "delta": DeltaSource,
    "iceberg": IcebergSource,
    "log": LogSource,
}
"""The kinds of sources that need no code."""


def source_kind(value: Any) -> str:
    """Whether a block ``source`` is declared, or the case's own."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return "declared" if isinstance(kind, str) and kind in DECLARED else "own"


def declared(value: dict[str, Any]) -> dict[str, Any]:
    """The block of a declared source, as it is. Raises ValueError with all of its mistakes."""
    try:
        DECLARED[value["kind"]].model_validate_json(json.dumps(value))
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(str(step) for step in one['loc'] if step not in {'str', 'tuple[str, ...]'})}: "
            + one["msg"].removeprefix("Value error, ").replace("Extra inputs are not permitted", "there is no such key")
            for one in error.errors(include_url=False)
        ]
        raise ValueError("; ".join(mistake.removeprefix(": ") for mistake in dict.fromkeys(mistakes))) from error
    return value
