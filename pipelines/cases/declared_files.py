"""Declared files: found here or copied from a store, checksummed, and read for a window without being held whole.

A file here is read where it lies; it must not change from the checksum to the last row. One that lies elsewhere is
copied below ``<state>/data/sources`` first, once for every version that the store tells of; a copy appears whole.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases import columns, row_groups, store_logins
from pipelines.cases.addresses import hidden, login, secrets_of, tells
from pipelines.cases.columns import Asked
from pipelines.cases.sources import Source, places
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.faults import of_disk, said
from pipelines.files import file_sha256, make_folder, usual_mode, write_atomic
from pipelines.params import FilesSource
from pipelines.provenance import wall_time
from pipelines.settings import Settings
from pipelines.storage import digest

ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
WEB = ("http", "https")
CONNECT_SECONDS, SILENT_SECONDS = 10, 60
"""How long a web server may take to answer, and to say something more; a whole file may take any time."""
_LOGIN = (
    *("Forbidden", "AccessDenied", "NoCredentials", "credentials", "Unauthorized", "InvalidAccessKeyId"),
    *("ClientAuthenticationError", "AzureSigningError", "onnection string", "onnection_string", "Provided token"),
    *("RefreshError", "DefaultCredentialsError", "MalformedError"),
)
"""What libraries say of a login that is refused, or that they cannot read."""
YOUNG_SECONDS = 2.0
"""A file that was written so lately may be written once more without another time: it is looked at again."""
CSV_CHUNK = 1 << 20
"""Bytes of a CSV that polars parses at once, on each thread and ahead: it would take 16 times as many. No parameter of
polars sets it; a line that is longer is read whole."""
os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", str(CSV_CHUNK))
_State = tuple[int, int, int]


@dataclass(frozen=True)
class File:
    """One file as it was when it was checksummed."""

    name: str
    path: Path
    sha256: str
    state: _State


@dataclass(frozen=True)
class Files(Source):
    """Declared files; ``sha256`` is that of all of them, by name.

    ``notes`` is where it is kept what was found of files that have not changed since; None: each is looked at anew.
    """

    files: tuple[File, ...] = ()
    notes: Path | None = None

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values, each file with its sha256."""
        return super().facts() | {"files": {file.name: file.sha256 for file in self.files}}


def resolve(declared: FilesSource, settings: Settings, case: str) -> Files:
    """Find, copy and checksum the declared files.

    Raises DataError if there are none or one cannot be read, ConfigError for an address that cannot be used or a
    refused login, Unavailable if a store does not answer.
    """
    found: dict[str, File] = {}
    why = []
    notes = None
    if declared.watermark is not None:
        plain = json.dumps(declared.model_dump(mode="json", exclude={"notice"}), sort_keys=True)
        notes = settings.root / "data" / "sources" / case / f"files-{digest(plain)[:16]}.json"
    known = _noted(notes)
    for url in declared.urls:
        protocol, _, rest = url.partition("://")
        if rest and protocol != "file":
            given = login(declared.login_from, store_logins.of_connection(protocol), settings, case)
            options = store_logins.options(protocol, given)
            files = _copied(url, protocol, options, settings, case, known)
            why.append(f"{url}: copied to {settings.root / 'data'}")
        else:
            files, where = _here(rest or url, settings, case, known)
            why.append(where)
        found |= {file.name: file for file in files}
    return Files(
        name=", ".join(declared.urls),
        kind="real",
        why="; ".join(why),
        notice=declared.notice,
        sha256=digest({name: file.sha256 for name, file in found.items()}),
        files=tuple(found[name] for name in sorted(found)),
        notes=notes,
    )


# --- files that have not changed ----------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What was found of a file in one state. ``span`` holds all of its event times; None: it has rows without any."""

    state: _State
    sha256: str
    span: tuple[datetime, datetime] | None


def _noted(notes: Path | None) -> dict[str, Note]:
    if notes is None or not notes.exists():
        return {}
    try:
        found = {}
        for name, (state, sha256, span) in json.loads(notes.read_text()).items():
            first_last = span and (datetime.fromisoformat(span[0]), datetime.fromisoformat(span[1]))
            found[name] = Note((state[0], state[1], state[2]), sha256, first_last)
    except (ValueError, TypeError, KeyError, IndexError):
        return {}  # half of a note is none: the files are looked at again
    return found


def _note(notes: Path, known: dict[str, Note]) -> None:
    make_folder(notes.parent)
    plain = {
        name: [note.state, note.sha256, note.span and [moment.isoformat() for moment in note.span]]
        for name, note in known.items()
    }
    write_atomic(notes, json.dumps(plain).encode(), durable=False)


# --- files that are here ------------------------------------------------------------------------


def _here(url: str, settings: Settings, case: str, known: dict[str, Note]) -> tuple[list[File], str]:
    """The files of a path or a pattern, and in words where they were found."""
    folders = places(settings)
    if Path(url).is_absolute():
        folders = [(Path("/"), "named in params.yaml")]
        url = url.lstrip("/")
    for folder, why in folders:
        paths = [path for path in [folder / url] if path.exists()]
        if glob.has_magic(url):
            paths = sorted(path for path in folder.glob(url) if path.is_file() and not _is_hidden(path.name))
        if paths:
            found = [_summed(path, str(path.relative_to(folder)), case, known) for path in paths]
            return found, f"{folder / url}: {why}"
    looked = ", ".join(str(folder) for folder, _ in folders)
    raise DataError(
        f"{case}: no file {url} in {looked}: put it there, set PERENNIAL_DATA_DIR to the folder that holds it, or mend "
        "source.url in params.yaml"
    )


def _is_hidden(name: str) -> bool:
    """Whether a pattern passes it over: what is being written, and what writers leave beside their data."""
    return name.rpartition("/")[2][:1] in {".", "_"}


def _summed(path: Path, name: str, case: str, known: dict[str, Note]) -> File:
    if path.is_dir():
        raise DataError(f"{case}: {path} is a folder: write source.url as a pattern, like {path.name}/*.parquet")
    try:
        state = _state(path)
        note = known.get(name)
        if note is not None and note.state == state:
            return File(name, path, note.sha256, state)
        return File(name, path, file_sha256(path), state)
    except OSError as error:
        raise DataError(f"{case}: {path} cannot be read ({error.strerror}): make it readable, or remove it") from error


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


# --- files that are elsewhere -------------------------------------------------------------------


def _copied(
    url: str, protocol: str, options: dict[str, Any], settings: Settings, case: str, known: dict[str, Note]
) -> list[File]:
    """Copies of what lies at an address, or matches a pattern there."""
    if protocol not in {*WEB, *store_logins.LIBRARIES}:
        raise ConfigError(
            f"{case}: source.url {url} begins with {protocol}://: choose https, s3, gs or abfs, or give a path"
        )
    store, path = _store(url, protocol, options, case)
    try:
        paths = [path]
        if protocol not in WEB and glob.has_magic(path):
            found = store.glob(path, detail=True)
            paths = sorted(one for one, about in found.items() if about["type"] == "file" and not _is_hidden(one))
    except Exception as error:
        raise _refused(error, url, case, secrets_of(options)) from error
    if not paths:
        raise DataError(f"{case}: no file matches {url}: mend source.url in params.yaml, or wait until one is there")
    folder = settings.root / "data" / "sources" / case
    copies = []
    for one in paths:
        address = url if len(paths) == 1 and one == path else f"{protocol}://{one}"
        try:
            copies.append(_copy(store, one, address, folder, case, known))
        except (DataError, ConfigError, Unavailable):
            raise
        except Exception as error:
            raise _refused(error, address, case, secrets_of(options)) from error
    return copies


def _store(url: str, protocol: str, options: dict[str, Any], case: str) -> tuple[Any, str]:
    """The file system of an address, asked anew: what an earlier look has listed may have changed."""
    import fsspec

    more = dict(options)
    if protocol in WEB:
        import aiohttp

        waits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        more["client_kwargs"] = {"timeout": waits}
    try:
        store, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **more)
    except ImportError as error:
        library = store_logins.LIBRARIES.get(protocol, "fsspec[http]")
        raise ConfigError(
            f"{case}: {protocol}:// needs the Python package {library}, which is not installed: pip install {library}, "
            f"as the extra of this name in pyproject.toml does ({said(error)})"
        ) from error
    except Exception as error:
        raise _refused(error, url, case, secrets_of(options)) from error
    return store, path


def _copy(store: Any, path: str, url: str, folder: Path, case: str, known: dict[str, Note]) -> File:
    before = store.info(path)
    version = _version(before)
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    note = folder / f"{name}.json"
    kept = json.loads(note.read_text()) if note.exists() else {}
    copy = folder / f"{name}-{kept.get('sha256', '')[:16]}"
    if version and kept.get("version") == version and copy.exists():
        file = _summed(copy, url, case, known)
        if file.sha256 == kept["sha256"]:
            return file
    make_folder(folder)
    descriptor, work = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    os.close(descriptor)
    try:
        store.get_file(path, work)
        size = before.get("size")
        if size is not None and Path(work).stat().st_size != size:
            raise Unavailable(
                f"{case}: {url} broke off after {Path(work).stat().st_size} of {size} bytes: try again; nothing of it "
                "is kept"
            )
        if _version(store.info(path)) != version:
            raise Unavailable(f"{case}: {url} changed while it was copied: try again once it is written")
        sha256 = file_sha256(Path(work))
        copy = folder / f"{name}-{sha256[:16]}"
        Path(work).chmod(usual_mode(0o666))
        os.replace(work, copy)
    finally:
        Path(work).unlink(missing_ok=True)
    write_atomic(note, json.dumps({"url": url, "version": version, "sha256": sha256}).encode())
    return File(url, copy, sha256, _state(copy))


def _version(info: dict[str, Any]) -> str:
    """What a store says that changes with the content; "" if nothing does."""
    marks = ("ETag", "etag", "e_tag", "generation", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "mtime")
    known = {mark: str(info[mark]) for mark in marks if info.get(mark)}
    return json.dumps(known | {"size": str(info.get("size"))}, sort_keys=True) if known else ""


def _status(error: Exception) -> int | None:
    """The HTTP status that a store answered with, under the name that its library has for it."""
    named = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((value for value in named if isinstance(value, int)), None)


def _refused(error: Exception, url: str, case: str, secrets: tuple[str, ...]) -> ConfigError | DataError | Unavailable:
    """What a store's library says, as one of our errors: they have no common base."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and "NoSuchBucket" not in str(cause):
        error = cause  # fsspec says that a file is not there whatever a web server said
    if (disk := of_disk(error)) is not None and not isinstance(error, PermissionError):
        return disk
    status = _status(error)
    words = hidden(said(error), secrets)
    if isinstance(error, FileNotFoundError) or status in {404, 410}:
        return DataError(f"{case}: there is nothing at {url}: mend source.url in params.yaml, or put the file there")
    if isinstance(error, PermissionError) or status in {401, 403} or tells(words, _LOGIN):
        return ConfigError(
            f"{case}: {url} refuses the login ({words}): give source.login_from, or the store's own variables, a login "
            "that may read it (docs/cases.md)"
        )
    mistaken = isinstance(error, ValueError | TypeError)
    if mistaken or (status is not None and 400 <= status < 500 and status not in {408, 429}):
        return ConfigError(
            f"{case}: {url} cannot be used ({words}): mend source.url in params.yaml, or what source.login_from names"
        )
    return Unavailable(f"{case}: {url} does not answer ({words}): try again, or mend source.url in params.yaml")


# --- reading ------------------------------------------------------------------------------------


def pieces(source: Files, asked: Asked) -> Iterator[pl.DataFrame]:
    """The rows of a window out of all files, piece by piece (:func:`pipelines.cases.columns.pieces`).

    Raises DataError naming the file that cannot be read, and why, and Unavailable for one that changes meanwhile.
    """
    kinds: pl.DataFrame | None = None
    known = _noted(source.notes)
    for file in source.files:
        if source.notes is not None and not _may_hold(file, known, asked):
            continue
        for piece in _pieces(file, asked):
            kinds = _of_one_kind(kinds, piece, source, asked)
            yield piece
    if source.notes is not None:
        _note(source.notes, {file.name: known[file.name] for file in source.files if file.name in known})
    if kinds is None:
        nothing = pl.LazyFrame(schema=dict.fromkeys(asked.names.values(), pl.Null))
        yield from columns.pieces([nothing], asked, source.name)


def _may_hold(file: File, known: dict[str, Note], asked: Asked) -> bool:
    """Whether a file may hold rows of the window; what is found of one that has rested is put among ``known``."""
    note = known.get(file.name)
    if note is None or note.state != file.state:
        known.pop(file.name, None)
        if wall_time() < datetime.fromtimestamp(file.state[2] / 1e9, UTC) + timedelta(seconds=YOUNG_SECONDS):
            return True
        with _readable(file, asked) as where:
            note = Note(file.state, file.sha256, columns.span(_scanned(file, asked, where), asked, where))
        known[file.name] = note
    return note.span is None or (note.span[0] < asked.window.end and note.span[1] >= asked.window.start)


def _of_one_kind(kinds: pl.DataFrame | None, piece: pl.DataFrame, source: Files, asked: Asked) -> pl.DataFrame:
    """The types of all pieces so far, without their rows."""
    try:
        return columns.together([one for one in (kinds, piece.clear()) if one is not None])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{asked.fields.case}: the files of {source.name} hold other types in the same column ({said(error)}): "
            "write all of them with one schema"
        ) from error


def _pieces(file: File, asked: Asked) -> Iterator[pl.DataFrame]:
    with _readable(file, asked) as where:
        yield from columns.pieces(_parts(file, asked, where), asked, where)


def _parts(file: File, asked: Asked, where: str) -> Iterator[pl.LazyFrame]:
    assert isinstance(asked.declared, FilesSource)
    if (asked.declared.format or _form(file.name)) == "parquet":
        yield from row_groups.parts(file.path, asked.event_time, asked.window)
    else:
        yield _scanned(file, asked, where)


@contextmanager
def _readable(file: File, asked: Asked) -> Iterator[str]:
    """Around a reading of a file: it is the same before and after, and errors are ours; gives its name for messages."""
    where = f"{asked.fields.case}: {file.path}"
    _check_same(file, where)
    try:
        yield where
    except (OSError, EOFError, ValueError, pl.exceptions.PolarsError) as error:
        _check_same(file, where)
        raise DataError(
            f"{where} cannot be read ({said(error)}): it may be half written, or not be the declared format; write it "
            "under another name and rename it once it is whole, or mend source in params.yaml"
        ) from error
    _check_same(file, where)


def _check_same(file: File, where: str) -> None:
    if not file.path.is_file() or _state(file.path) != file.state:
        raise Unavailable(
            f"{where} changed while it was read: try again, and write files under another name and rename them once "
            "they are whole"
        )


def _scanned(file: File, asked: Asked, where: str) -> pl.LazyFrame:
    declared = asked.declared
    assert isinstance(declared, FilesSource)
    form = declared.format or _form(file.name)
    if form == "parquet":
        return pl.scan_parquet(file.path, hive_partitioning=False)
    if form == "csv":
        _check_csv(file.path, declared.separator, where)
        return pl.scan_csv(
            file.path, separator=declared.separator, infer_schema=False, null_values=list(declared.nulls) or None
        )
    asked.check(_keys(file.path, set(asked.names.values())), where)
    return pl.scan_ndjson(file.path, schema=asked.text_types)


def form_of(name: str) -> str:
    """What a file's ending says that it holds: parquet, csv or json; "" if nothing."""
    name = name.lower().partition("?")[0]
    return next((form for ending, form in ENDINGS.items() if name.endswith(ending)), "")


def _form(name: str) -> str:
    found = form_of(name)
    if not found:
        raise ConfigError(
            f"{name} does not say by its ending what it is ({', '.join(ENDINGS)}): give source.format in params.yaml, "
            "parquet, csv or json"
        )
    return found


def _check_csv(path: Path, separator: str, where: str) -> None:
    """Raise DataError if the last line breaks off: a reader of CSV takes what lacks for missing."""
    with opened(path) as file:
        head = file.readline()
    if path.suffix == ".gz" or not head:
        return  # gzip tells by itself
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        tail = file.read()
    last = tail.rpartition(b"\n")[2]
    if last and b'"' not in last + head and last.count(separator.encode()) < head.count(separator.encode()):
        raise DataError(
            f"{where} breaks off in its last line ({last[:60].decode(errors='replace')!r}): it is half written; write "
            "it under another name and rename it once it is whole"
        )


def _keys(path: Path, wanted: set[str]) -> list[str]:
    """The keys of a file's objects, read until all that are wanted were seen."""
    seen: dict[str, None] = {}
    for line in _lines(path):
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError(f"a line holds {type(found).__name__}: one JSON object a line is expected")  # noqa: TRY004
        seen |= dict.fromkeys(found)
        if wanted <= seen.keys():
            break
    return list(seen)


def _lines(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        for line in file:
            if line.strip():
                yield line


def opened(path: Path) -> Any:
    """A file to be read as bytes, unpacked if it is packed with gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def whole(source: Files, declared: FilesSource, case: str) -> pl.LazyFrame:
    """All rows with the columns that every file has, as they are: CSV and JSON as texts, nothing taken for missing.

    For a look at what nobody has declared yet, and for a source.py that makes its rows of them.
    """
    frames = [_as_it_is(file, declared, f"{case}: {file.path}") for file in source.files]
    schemas = [frame.collect_schema().names() for frame in frames]
    names = [name for name in schemas[0] if all(name in schema for schema in schemas)]
    return pl.concat([frame.select(names) for frame in frames], how="vertical_relaxed")


def _as_it_is(file: File, declared: FilesSource, where: str) -> pl.LazyFrame:
    form = declared.format or _form(file.name)
    if form == "parquet":
        return pl.scan_parquet(file.path, hive_partitioning=False)
    if form == "csv":
        _check_csv(file.path, declared.separator, where)
        return pl.scan_csv(file.path, separator=declared.separator, infer_schema=False)
    schema = pl.scan_ndjson(file.path, infer_schema_length=None).collect_schema()
    nested = {name: kind for name, kind in schema.items() if isinstance(kind, pl.List | pl.Struct)}
    return pl.scan_ndjson(file.path, schema={name: nested.get(name, pl.String()) for name in schema})
