"""A look at data that nobody has declared yet: files, here or elsewhere, or a table of a database; a sample of much."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases import declared_files, declared_sql, store_logins
from pipelines.cases.columns import Asked as Columns
from pipelines.cases.columns import together
from pipelines.cases.sampling import stride
from pipelines.cases.sources import places
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError
from pipelines.faults import said
from pipelines.fields import Fields
from pipelines.inspection.declaring import Place
from pipelines.inspection.table import Asked, moments_of, read_moments
from pipelines.inspection.volume import Extent
from pipelines.params import FilesSource, SqlSource
from pipelines.settings import Settings

MOST, CELLS = 200_000, 20_000_000
"""So many rows are looked at, and of wide tables so many values; of more, rows evenly spaced."""
FEWEST = 20_000
SEPARATORS = ",;\t|"
FROM = ("env", "file", "connection")
"""What may stand before a colon where --from says where a database's address is."""
AIRFLOW = "AIRFLOW_CONN_"


@dataclass(frozen=True)
class Where:
    """What somebody says of where data lie: the address, and a table or query of a database, or the files' format."""

    address: str
    table: str | None = None
    query: str | None = None
    form: str | None = None


@dataclass(frozen=True)
class Look:
    """Rows as they lie there. ``extent`` is the whole's where these are some of them; ``place`` is where they are."""

    frame: pl.DataFrame
    extent: Extent | None
    place: Place
    source: declared_files.Files | declared_sql.Database


def look_at(asked: Asked, where: Where, settings: Settings) -> Look:
    """Look at what lies there.

    Raises ConfigError for what cannot be found or is of another form, DataError for what is broken or empty,
    Unavailable if nothing answers there.
    """
    if where.table or where.query:
        return _at_database(asked, where, settings)
    return _at_files(asked, where.address, where.form, settings)


def files_at(
    given: str, form: str | None, settings: Settings, case: str, **options: Any
) -> tuple[dict[str, Any], declared_files.Files]:
    """The files that somebody names, found; and the declaration of them as params.yaml has it, with ``options``."""
    block: dict[str, Any] = {"kind": "files", "url": _url(given, settings), **options}
    form = form or _form(given)
    if form not in declared_files.ENDINGS.values() or not given.lower().endswith(tuple(declared_files.ENDINGS)):
        block["format"] = form
    source = declared_files.resolve(FilesSource.model_validate_json(json.dumps(block)), settings, case)
    if form == "csv" and (mark := _separator(source.files[0].path)) != ",":
        block["separator"] = mark
    return block, source


def _at_files(asked: Asked, given: str, form: str | None, settings: Settings) -> Look:
    block, source = files_at(given, form, settings, asked.case)
    declared = FilesSource.model_validate(block)
    form = form or _form(given)
    place = Place(block, texts=form == "csv")
    try:
        frame, extent = _of_files(declared_files.whole(source, declared, asked.case), asked)
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{given} cannot be read as {form} ({said(error)}): {_mend(str(error), form)}") from error
    if frame.is_empty():
        raise DataError(f"{given} has no rows: give one with at least some hundred")
    return Look(frame, extent, place, source)


def _at_database(asked: Asked, where: Where, settings: Settings) -> Look:
    block: dict[str, Any] = {"kind": "sql", "url_from": _url_from(where.address, settings)}
    if where.table and where.query:
        raise ConfigError("--table and --query: give one of both")
    block |= {"table": where.table} if where.table else {"query": where.query}
    declared = SqlSource.model_validate(block)
    source = declared_sql.resolve(declared, settings, asked.case)
    found = declared_sql.sample(source, asked.case, asked.time, asked.label, MOST, asked.without)
    if found.frame.is_empty():
        raise DataError(f"{source.name} has no rows: give one with at least some hundred")
    frame = found.frame.with_columns(pl.lit(None).alias(name) for name in asked.without)
    extent = None
    if found.frame.height < found.rows:
        ends = pl.DataFrame({asked.time: found.times}, schema={asked.time: frame.schema[asked.time]}, strict=False)
        extent = _extent(found.rows, read_moments(ends, moments_of(frame, asked.time, asked)))
    return Look(frame, extent, Place(block), source)


def read(look: Look, options: Mapping[str, Any], fields: Fields, window: Window) -> pl.DataFrame:
    """The rows of a window as the source with these options will deliver them. Raises what reading it raises."""
    block = json.dumps({**look.place.block, **options})
    if isinstance(look.source, declared_sql.Database):
        declared = SqlSource.model_validate_json(block)
        pieces = declared_sql.pieces(replace(look.source, declared=declared), Columns(fields, declared, window))
    else:
        pieces = declared_files.pieces(look.source, Columns(fields, FilesSource.model_validate_json(block), window))
    return together(pieces)


# --- files --------------------------------------------------------------------------------------


def _url(given: str, settings: Settings) -> str:
    """The address as params.yaml has it: a path from here is absolute, or below the folder of the data."""
    protocol, _, rest = given.partition("://")
    if rest and protocol != "file":
        if protocol not in {*declared_files.WEB, *store_logins.LIBRARIES}:
            raise ConfigError(
                f"--from {protocol}://...: of a database say --table or --query, and keep its address out of sight: "
                "--from env:NAME, file:PATH or connection:ID; of files choose https, s3, gs or abfs"
            )
        return given
    path = Path(rest or given).expanduser()
    known = path.exists() or (glob.has_magic(str(path)) and glob.glob(str(path), recursive=True))  # noqa: PTH207
    if not known:
        if not path.is_absolute() and any(any(folder.glob(str(path))) for folder, _ in places(settings)):
            return str(path)
        raise ConfigError(f"{given} is no file: give the path of one on this machine, a pattern or an address")
    if path.is_dir():
        raise ConfigError(f"{given} is a folder: give a pattern, in quotes, like '{given.rstrip('/')}/*.parquet'")
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link stays the link
    folders = [folder.expanduser().absolute() for folder, _ in places(settings)]
    for folder in folders:
        if path.is_relative_to(folder):
            inside = str(path.relative_to(folder))
            # Another file of this name would be found first.
            return inside if next(one for one in folders if any(one.glob(inside))) == folder else str(path)
    return str(path)


def _mend(words: str, form: str) -> str:
    """What to do about what polars says of a file."""
    if "utf-8" in words:
        return "save it as UTF-8"
    if "more fields" in words:
        return "a line has more values than the header: quote values with the mark in them, and drop lines above it"
    if form == "json":
        return "write one JSON object a line, all with the same types"
    return "mend it, or save it anew"


def _form(given: str) -> str:
    name = given.lower().partition("?")[0]
    if name.endswith((".tsv", ".tab")):
        return "csv"
    found = declared_files.form_of(name)
    if not found:
        ending = Path(name).suffix or "nothing"
        raise ConfigError(
            f"{given} ends with {ending}: say --format parquet, csv or json of what it holds; save any other as one"
        )
    return found


def _separator(path: Path) -> str:
    """The mark that a header has most of; a comma if it has none."""
    with declared_files.opened(path) as file:
        head = file.readline().decode(errors="replace")
    return max(SEPARATORS, key=head.count)


def _of_files(whole: pl.LazyFrame, asked: Asked) -> tuple[pl.DataFrame, Extent | None]:
    """The rows, or of more than are looked at those evenly spaced, and some of every label."""
    names = whole.collect_schema().names()
    rows = int(whole.select(pl.len()).collect(engine="streaming").item())
    most = min(MOST, max(FEWEST, CELLS // max(1, len(names))))
    if rows <= most or not {asked.time, asked.label} <= set(names):
        return whole.head(most).collect(engine="streaming"), None
    number = "row_in_order"
    place = pl.col(number).cast(pl.UInt64) * stride(rows) % rows
    frame = whole.with_row_index(number).filter(place < most).drop(number).collect(engine="streaming")
    seen = frame[asked.label].drop_nulls().unique()
    if seen.len() <= declared_sql.RARE:
        others = whole.filter(pl.col(asked.label).is_not_null() & ~pl.col(asked.label).is_in(seen.implode()))
        frame = pl.concat([frame, others.unique(subset=[asked.label], keep="first").collect(engine="streaming")])
    how = moments_of(frame, asked.time, asked)
    when = read_moments(whole.select(asked.time).collect(engine="streaming"), how)
    return frame, _extent(rows, when)


def _extent(rows: int, when: pl.Series) -> Extent | None:
    first, last = when.min(), when.max()
    if isinstance(first, datetime) and isinstance(last, datetime):
        return Extent(rows, first, last)
    return None


# --- databases ----------------------------------------------------------------------------------


def _url_from(given: str, settings: Settings) -> dict[str, str]:
    """Where the address is told, as params.yaml has it; never the address."""
    if "://" in given:
        raise ConfigError(
            "--from holds the address of a database, which may have a password and is never written down: keep it in "
            "a variable or a file, and say --from env:NAME, file:PATH or connection:ID of Airflow's"
        )
    kind, _, rest = given.partition(":")
    if not rest or kind not in FROM:
        kind, rest = _kind(given)
    if kind == "connection":
        return {kind: rest.removeprefix(AIRFLOW).lower() if rest.startswith(AIRFLOW) else rest}
    if kind == "file" and not (settings.root / rest).exists():
        rest = str(Path(rest).expanduser().absolute())
    return {kind: rest}


def _kind(given: str) -> tuple[str, str]:
    if given.startswith(AIRFLOW):
        return "connection", given
    if given in os.environ:
        return "env", given
    if Path(given).expanduser().is_file():
        return "file", given
    raise ConfigError(
        f"--from {given} is neither a file nor a variable with a database's address: say env:NAME, file:PATH or "
        "connection:ID of Airflow's"
    )
