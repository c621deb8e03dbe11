"""The store behind a state folder: lake, log archive and artefacts as objects that every machine sees.

With ``PERENNIAL_LAKE`` (``s3://bucket/prefix``, ``gs://``, ``az://``, ``file://``) the folders ``lake`` and
``artefacts`` of a state are a copy of what was needed there. What is here is in the store, as it is put there first:

- A file of the lake is named by what it holds, and put as it is; of two writers both are right.
- A step's folder is put file by file under a name of the try's own, then ``<step>/<number>.json`` with its manifest,
  only if there is no such object. So of several tries one wins, as with the rename of a folder. The highest number is
  the folder's present content; the lower ones are what later commits set aside.

The conditional put is ``If-None-Match: *`` (S3), ``ifGenerationMatch=0`` (Google Cloud Storage) or its like in Azure.
Everything here does nothing where a path belongs to no state folder with a store.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, Unavailable
from pipelines.files import make_durable, make_folder, usual_mode, work_folder, write_atomic
from pipelines.settings import Settings

FOLDERS = ("lake", "artefacts")
"""What of a state folder is in the store."""
AT_ONCE = 8
"""Objects that are asked for at once."""
_COMMIT = re.compile(r"(\d{6})\.json")
MANIFEST = "manifest.json"
"""What says of a step's folder what it holds."""
DAMAGED = "damaged-"
"""Before the key in the name of a folder that was set aside as it was not as committed.

``<step>.damaged-<key>.<random>``.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """An object: its ``name`` in the store at ``url``."""

    url: str
    name: str

    def __truediv__(self, below: str) -> _Place:
        return _Place(self.url, f"{self.name}/{below}")

    @property
    def store(self) -> Any:
        """The store, of this process: a parent's connections are no child's."""
        return _opened(self.url, os.getpid())


@dataclass(frozen=True)
class Commit:
    """One content of a step's folder: its ``number``, the name under which its files lie, its manifest's text."""

    number: int
    files: str
    manifest: str

    @property
    def about(self) -> dict[str, Any]:
        """The manifest."""
        found: dict[str, Any] = json.loads(self.manifest)
        return found


_attached: dict[Path, str] = {}
"""State folders that have a store, and its address."""


def attach(settings: Settings) -> None:
    """From now on the state folder of ``settings`` is a copy of its store, if it has one.

    Raises ConfigError for an address that is none.
    """
    if settings.lake:
        _opened(settings.lake, os.getpid())
        _attached[settings.root] = settings.lake


def covers(path: Path) -> bool:
    """Whether what is missing at this path may be in a store."""
    return _place(path) is not None


def put(path: Path, data: bytes) -> None:
    """Put a file that is named by what it holds, before it is written to ``path``. Raises Unavailable."""
    place = _place(path)
    if place is not None:
        _create(place, data)


def put_files(paths: Collection[Path]) -> None:
    """Like :func:`put`, of files that lie here."""
    if _attached:
        _each(lambda path: put(path, path.read_bytes()), paths)


def put_once(path: Path, data: bytes) -> bytes:
    """Put a file of which the first one stays; returns the bytes that the store has now. Raises Unavailable."""
    place = _place(path)
    if place is None or _create(place, data):
        return data
    return _get(place) or data


def replace(path: Path, data: bytes) -> None:
    """Put a file in place of another one. Raises Unavailable."""
    place = _place(path)
    if place is not None:
        _put(place, data)


def need(*paths: Path) -> None:
    """Bring files here that are only in the store; what is nowhere stays away. Raises Unavailable."""
    if _attached:
        _each(_bring, [path for path in paths if not path.exists()])


def latest(path: Path) -> None:
    """Bring a file here that is written more than once, as it is in the store. Raises Unavailable."""
    place = _place(path)
    if place is None or (data := _get(place)) is None:
        return
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def need_folder(folder: Path) -> None:
    """Bring the files of a folder here that are only in the store, without folders in it. Raises Unavailable."""
    place = _place(folder)
    if place is not None:
        need(*(folder / name for name in _names(place)[0]))


def forget(path: Path) -> None:
    """Remove an object that others have taken the place of. Raises Unavailable."""
    place = _place(path)
    if place is not None:
        import obstore

        with _asking(place):
            obstore.delete(place.store, place.name)


def forget_folder(folder: Path) -> None:
    """Remove everything of a folder, what it has set aside too. Raises Unavailable."""
    place = _place(folder)
    if place is None:
        return
    import obstore

    with _asking(place):
        for found in obstore.list(place.store, f"{place.name}/"):
            obstore.delete(place.store, [one["path"] for one in found])


# --- the folders of steps -----------------------------------------------------------------------


def refresh(folder: Path) -> int:
    """Bring the present content of a step's folder here; returns its number, 0 if there is none.

    A folder that holds something else is set aside, as by a commit. Raises Unavailable.
    """
    place = _place(folder)
    if place is None or not (numbers := _numbers(place)):
        return 0
    commit = _commit(place, numbers[-1])
    if commit is not None and _manifest(folder) != commit.manifest:
        _bring_folder(place, folder, commit, now=True)
    return numbers[-1]


def refresh_all(above: Path, step: str, *, every: bool = False) -> None:
    """Bring the folders ``<above>/*/<step>`` here; ``every`` content of them, also what was set aside.

    Raises Unavailable.
    """
    place = _place(above)
    if place is None:
        return

    def one(run: str) -> None:
        folder = above / run / step
        newest = refresh(folder)
        for number in range(1, newest) if every else ():
            if (commit := _commit(place / run / step, number)) is not None:
                _bring_folder(place / run / step, folder, commit, now=False)

    _each(one, _names(place)[1])


def bring(folder: Path, key: str) -> bool:
    """Bring the content ``key`` of a step's folder here, be it the present one or one of before; whether there is one.

    Raises Unavailable.
    """
    place = _place(folder)
    if place is None:
        return False
    numbers = _numbers(place)
    for number in reversed(numbers):
        commit = _commit(place, number)
        if commit is not None and commit.about["key"] == key:
            _bring_folder(place, folder, commit, now=number == numbers[-1])
            return True
    return False


def publish(folder: Path, work: Path, after: int, between: Callable[[], None] = lambda: None) -> bool:
    """Put what lies in ``work`` as the content of a step's folder that follows the one numbered ``after``.

    ``between`` is called when the files are there and nothing names them yet. Returns whether it is that content now;
    False if another one was first. Raises Unavailable.
    """
    place = _place(folder)
    if place is None:
        return True
    manifest = (work / MANIFEST).read_text()
    names = list(json.loads(manifest)["files"])
    own = f"{json.loads(manifest)['key'][:16]}-{uuid.uuid4().hex[:8]}"
    _each(lambda name: _put(place / own / name, work / name), names)
    between()
    text = json.dumps({"files": own, "manifest": manifest})
    if _create(place / f"{after + 1:06d}.json", text.encode()):
        return True
    first = _commit(place, after + 1)
    return first is not None and first.files == own  # a put that was sent twice has met itself


def commits(folder: Path) -> list[Commit]:
    """All contents of a step's folder, the newest last. Raises Unavailable."""
    place = _place(folder)
    if place is None:
        return []
    found = (_commit(place, number) for number in _numbers(place))
    return [commit for commit in found if commit is not None]


def push(settings: Settings, case: str = "") -> dict[str, int]:
    """Put all of a state's lake and artefacts (of one ``case``) that the store lacks: how a state of before gets one.

    Returns how many files and folders were put. Raises Unavailable; what was put until then stays, and the next push
    goes on there. A folder of which the store has other contents is left alone.
    """
    attach(settings)
    lake, artefacts = (settings.root / folder / case for folder in FOLDERS)
    files = [path for path in lake.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(lake))]
    put_files(files)
    folders = 0
    for manifest in sorted(artefacts.rglob(MANIFEST)):
        folder = manifest.parent
        if _is_hidden(folder.relative_to(artefacts)) or "." in folder.name:
            continue
        contents = [*_set_aside(folder), folder]
        there = [commit.manifest for commit in commits(folder)]
        if there == [_manifest(content) for content in contents[: len(there)]]:
            for number in range(len(there), len(contents)):
                folders += publish(folder, contents[number], number)
    return {"files": len(files), "folders": folders}


def _set_aside(folder: Path) -> list[Path]:
    """What a step's folder held before, the oldest first, as far as it is as it was committed."""
    found = [
        path
        for path in folder.parent.glob(f"{folder.name}.*")
        if _manifest(path) and not path.name.startswith(f"{folder.name}.{DAMAGED}")
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "scratch" for part in path.parts)


def _numbers(place: _Place) -> list[int]:
    found = (_COMMIT.fullmatch(name) for name in _names(place)[0])
    return sorted(int(name[1]) for name in found if name is not None)


def _commit(place: _Place, number: int) -> Commit | None:
    data = _get(place / f"{number:06d}.json")
    if data is None:
        return None
    found = json.loads(data)
    return Commit(number, found["files"], found["manifest"])


def _manifest(folder: Path) -> str:
    try:
        return (folder / MANIFEST).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _bring_folder(place: _Place, folder: Path, commit: Commit, *, now: bool) -> None:
    """Bring a content here: ``now`` as the folder itself, else beside it under the name of one that was set aside."""
    key = commit.about["key"][:12]
    if not now and any(_manifest(path) == commit.manifest for path in folder.parent.glob(f"{folder.name}.{key}.*")):
        return
    make_folder(folder.parent)
    with work_folder(folder) as work:
        for name in commit.about["files"]:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
        _each(lambda name: (work / name).write_bytes(_whole(place / commit.files / name)), commit.about["files"])
        (work / MANIFEST).write_text(commit.manifest)
        make_durable([path for path in work.rglob("*") if path.is_file() or path.is_dir()])
        work.chmod(usual_mode(0o777))
        token = work.name.rsplit(".", 1)[-1]
        if not now:
            os.rename(work, folder.with_name(f"{folder.name}.{key}.{token}"))
            return
        before = _manifest(folder)
        if before == commit.manifest:
            return  # another process has brought it meanwhile
        if before:
            os.replace(folder, folder.with_name(f"{folder.name}.{json.loads(before)['key'][:12]}.{token}"))
        try:
            os.rename(work, folder)
        except OSError:
            log.info("%s: another process has brought it", folder)


# --- objects ------------------------------------------------------------------------------------


def _place(path: Path) -> _Place | None:
    for root, url in _attached.items():
        if any(path.is_relative_to(root / folder) for folder in FOLDERS):
            return _Place(url, path.relative_to(root).as_posix())
    return None


@lru_cache(maxsize=8)
def _opened(url: str, _process: int) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise ConfigError(
            "PERENNIAL_LAKE needs the package obstore: pip install perennial[objects], or unset it"
        ) from error
    options: Any = {"allow_http": True} if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://") else {}
    if url.startswith("file://"):
        Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
        return from_url(url)
    try:
        return from_url(url, client_options=options)
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(
            f"PERENNIAL_LAKE={url} is no address of a store ({_said(error)}): give one like s3://bucket/prefix, "
            "gs://bucket/prefix, az://container/prefix or file:///folder"
        ) from error


@contextmanager
def _asking(place: _Place) -> Iterator[None]:
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

    try:
        yield
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except NotFoundError as error:
        raise FileNotFoundError(place.name) from error
    except (BaseError, OSError) as error:
        raise Unavailable(
            f"the store {place.url} did not take or give {place.name} ({type(error).__name__}: {_said(error)}): see "
            "that it runs, that its bucket is there, and that this process may write there"
        ) from error


def _said(error: Exception) -> str:
    """An error's first line: a description of the library's own follows."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _create(place: _Place, data: bytes) -> bool:
    """Whether the object was put: False if there is one of that name."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    try:
        with _asking(place):
            obstore.put(place.store, place.name, data, mode="create")
    except AlreadyExistsError:
        return False
    return True


def _put(place: _Place, data: bytes | Path) -> None:
    import obstore

    with _asking(place):
        obstore.put(place.store, place.name, data)


def _get(place: _Place) -> bytes | None:
    import obstore

    try:
        with _asking(place):
            return bytes(obstore.get(place.store, place.name).bytes())
    except FileNotFoundError:
        return None


def _whole(place: _Place) -> bytes:
    data = _get(place)
    if data is None:
        raise Unavailable(f"the store {place.url} lacks {place.name}, which a commit names: restore it there")
    return data


def _bring(path: Path) -> None:
    place = _place(path)
    if place is not None and (data := _get(place)) is not None:
        write_atomic(path, data)


def _names(place: _Place) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders below an object's name."""
    import obstore

    with _asking(place):
        found = obstore.list_with_delimiter(place.store, f"{place.name}/")
    files = [str(one["path"]).rpartition("/")[2] for one in found["objects"]]
    return files, [str(one).rstrip("/").rpartition("/")[2] for one in found["common_prefixes"]]


def _each(work: Any, items: Iterable[Any]) -> None:
    """Do something for each item, some at once; the first error is raised."""
    every = list(items)
    if len(every) < 2:
        for item in every:
            work(item)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(every))) as pool:
        list(pool.map(work, every))
