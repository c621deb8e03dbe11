"""Start, look at and stop all services of one state folder.

``<home>/stack.json`` says what runs: pids with their start times, ports, and the tag that every process of the stack
carries in its environment. It is written before the first process starts, so that whatever happens later, ``stop``
finds everything. Beside it ``<home>/env`` leads steps by hand to the stack (pipelines/places.py).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from embedded import airflow, full, triton
from embedded.ports import FULL_ONLY, Ports, names
from embedded.processes import Started, alive, end, last_lines, launch, sweep, tagged
from embedded.service import Service
from embedded.services import full_environment, missing_environment, services
from pipelines.errors import ConfigError, ConflictError, PerennialError, Unavailable
from pipelines.files import sweep as sweep_writes
from pipelines.files import write_atomic
from pipelines.installation import typed
from pipelines.locks import alone
from pipelines.places import ENV, PRIVATE, RECORD, TAG
from pipelines.settings import Settings, read_settings

START_SECONDS = 180.0
"""The start deadline, anew with each service that works: a busy machine takes its time."""

STATUS_ATTEMPTS = 4
"""A busy service may answer late once; only one that fails several times is called not ready."""


@dataclass(frozen=True)
class Stack:
    """A running stack. ``env`` holds the ``PERENNIAL_*`` and ``AIRFLOW__*`` variables that its processes got.

    ``broken`` says which champions could not be brought back into Triton, and why: the rest serves.
    """

    home: Path
    ports: Ports
    pids: dict[str, int]
    env: dict[str, str]
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What ``stack.json`` holds."""

    tag: str
    ports: Ports
    traffic: bool
    processes: tuple[Started, ...]
    profile: str = "embedded"


def start(
    settings_home: Path,
    ports: Ports,
    *,
    traffic: bool = False,
    profile: str = "embedded",
    extra_env: dict[str, str] | None = None,
    deadline: float = START_SECONDS,
    on_ready: Callable[[str, float], None] | None = None,
) -> Stack:
    """Start every service on ``settings_home`` and wait until all work; ``on_ready(name, seconds)`` is told of each.

    Raises ConflictError if this state already runs, ConfigError or Unavailable (before anything starts)
    for a missing installation or a busy port, Unavailable with the log's last lines if a service dies or no further
    one is healthy for ``deadline`` seconds; whatever was started is stopped again then.
    """
    home = settings_home.expanduser().resolve()
    began = time.monotonic()
    if missing := missing_environment():
        raise ConfigError(missing)
    triton.require()
    is_full = profile == "full"
    if is_full:
        full.require()
    with _private(), _locked(home):
        refuse_if_running(home)
        stop(home)  # strays of a stack that was killed
        _tighten(home)
        _sweep_writes(home)
        ports.require_free(but=() if is_full else FULL_ONLY)
        _require_folders(read_settings(home=home))
        triton.prepare(home)
        if is_full:
            full.prepare(home, ports)
        env = full_environment(home, ports, extra_env, profile)
        # Before anything reads settings of this state: it may have been started otherwise the last time.
        _write_env(home, env)
        _make_key(home)
        record = Record(triton.stack_tag(home), ports, traffic, (), profile)
        _write(home, record)
        broken: list[str] = []
        try:
            if is_full:
                foundation = full.foundation(home, ports, env)
                for service in foundation:
                    record = _launch(home, record, service)
                _wait(foundation, record, began, deadline, on_ready)
                full.make_databases(home, ports)
                full.check_databases(full.urls(home))
            wanted = services(home, ports, env, traffic=traffic, broken=broken, profile=profile)
            for service in [service for service in wanted if service.env is not env]:
                record = _launch(home, record, service)
            airflow.migrate(env)
            _require_alive(record)  # one that has ended meanwhile is told before Airflow's own are started
            for service in [service for service in wanted if service.env is env]:
                record = _launch(home, record, service)
            _wait(wanted, record, began, deadline, on_ready)
        except BaseException:
            stop(home)
            raise
    kept = {
        name: value for name, value in env.items() if name.startswith(("PERENNIAL_", "AIRFLOW")) and value != record.tag
    }
    return Stack(home, ports, {process.name: process.pid for process in record.processes}, kept, tuple(broken))


def stop(home: Path) -> int:
    """Stop everything of the state folder ``home`` and delete its shared memory.

    Returns the number of processes left (0). Nothing running is fine. Strays are found by their tag even if stack.json
    is lost.
    """
    home = home.expanduser().resolve()
    record = read(home)
    processes: tuple[Started, ...] = ()
    if record:
        processes = record.processes
    left = end(processes, triton.stack_tag(home))
    if not left:
        triton.sweep(home)
        (home / RECORD).unlink(missing_ok=True)
    return left


def again(home: Path, name: str) -> Started:
    """End what a dead service of a running stack left, and start it once more, as compose would.

    Does not wait until it works. Raises ConfigError if the stack has no such service, ConflictError if it is alive.
    """
    home = home.expanduser().resolve()
    record = read(home)
    found: dict[str, Service] = {}
    if record:
        found = {service.name: service for service in _all(home, record)}
    if record is None or name not in found:
        raise ConfigError(
            f"the stack of {home} has no service {name!r}: choose one of {', '.join(found) or 'none, it does not run'}"
        )
    others = tuple(process for process in record.processes if process.name != name)
    if len(others) < len(record.processes) and any(
        alive(process) for process in record.processes if process.name == name
    ):
        raise ConflictError(f"{name} of {home} is running: end it first")
    if left := sweep(record.tag, name):
        raise Unavailable(
            f"{left} process(es) that {name} of {home} left could not be ended: `{typed('down')}`, then `{typed('up')}`"
        )
    return _launch(home, replace(record, processes=others), found[name]).processes[-1]


def _all(home: Path, record: Record) -> list[Service]:
    env = full_environment(home, record.ports, profile=record.profile)
    below: list[Service] = []
    if record.profile == "full":
        below = full.foundation(home, record.ports, env)
    return [*below, *services(home, record.ports, env, traffic=record.traffic, profile=record.profile)]


def refuse_if_running(home: Path) -> None:
    """Raise ConflictError naming the services of ``home`` that run."""
    record = read(home.expanduser().resolve())
    if record is None:
        return
    running = [process for process in record.processes if alive(process)]
    if running:
        names = ", ".join(f"{process.name} ({process.pid})" for process in running)
        raise ConflictError(
            f"a stack of {home} is already running: {names}; look at it with `{typed('status', home)}`, "
            f"stop it with `{typed('down', home)}`"
        )


def read(home: Path) -> Record | None:
    """The record of what was started last, or None if it was stopped.

    A record that cannot be read raises ConfigError.
    """
    path = home / RECORD
    try:
        found = json.loads(path.read_text())
        return Record(
            found["tag"],
            Ports(
                **{name: port for name, port in found["ports"].items() if name in names()}
            ),  # a record of an older commit may have more
            found["traffic"],
            tuple(Started(**process) for process in found["processes"]),
            found.get("profile", "embedded"),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): delete it and run `{typed('down', home)}`, which finds the processes "
            "without it"
        ) from error


def status(home: Path) -> list[dict[str, str]]:
    """One row per service: ``{service, state, address, pid, log}``; no row if nothing was started.

    ``state`` is healthy, dead, or not ready (it runs, but fails its check; the reason stands behind a colon).
    """
    home = home.expanduser().resolve()
    record = read(home)
    if record is None:
        return []
    running = {process.name: process for process in record.processes}
    rows = []
    for service in _all(home, record):
        process = running.get(service.name)
        row = {"service": service.name, "state": _state(service, process), "address": service.address}
        row |= {"pid": "", "log": ""}
        if process:
            row |= {"pid": str(process.pid), "log": process.log}
        rows.append(row)
    return rows


def strays(home: Path) -> int:
    """How many living processes carry the tag of ``home``."""
    return len(tagged(triton.stack_tag(home)))


def _state(service: Service, process: Started | None) -> str:
    for attempt in range(STATUS_ATTEMPTS):
        if process is None or not alive(process):
            return "dead"
        try:
            if service.check():
                return "healthy"
            reason = ""
        except PerennialError as error:
            reason = f": {error}"
        time.sleep(0.5 if attempt < STATUS_ATTEMPTS - 1 else 0)
    return f"not ready{reason}"


def _launch(home: Path, record: Record, service: Service) -> Record:
    process = replace(
        launch(service.name, service.argv, service.env, home / "logs" / f"{service.name}.log", service.mend),
        stop=service.stop,
        last=service.last,
    )
    record = replace(record, processes=(*record.processes, process))
    _write(home, record)
    return record


def _wait(
    wanted: Sequence[Service],
    record: Record,
    began: float,
    deadline: float,
    on_ready: Callable[[str, float], None] | None,
) -> None:
    """Poll until every check holds; a dead process, or no further service in time, ends the wait with Unavailable."""
    missing = list(wanted)
    last = time.monotonic()
    while True:
        for service in list(missing):
            if service.check():
                missing.remove(service)
                last = time.monotonic()
                if on_ready:
                    on_ready(service.name, last - began)
        _require_alive(record)
        if not missing:
            return
        if time.monotonic() - last > deadline:
            log = next(process.log for process in record.processes if process.name == missing[0].name)
            names = ", ".join(service.name for service in missing)
            spent = time.monotonic() - began
            raise Unavailable(f"not healthy after {spent:.0f} s: {names}; the end of {log}:\n{last_lines(Path(log))}")
        time.sleep(0.25)


def _require_alive(record: Record) -> None:
    """Raise Unavailable with the last lines of the first process that has ended."""
    for process in record.processes:
        if not alive(process):
            raise Unavailable(
                f"{process.name} ended during the start; the end of {process.log}:\n{last_lines(Path(process.log))}"
            )


@contextmanager
def _private() -> Iterator[None]:
    """What is written meanwhile is its owner's alone."""
    before = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(before)


def _tighten(home: Path) -> None:
    """Take away what an older commit let other users do with a state folder: all of it, once.

    Afterwards it is closed.
    """
    if not home.stat().st_mode & 0o007:
        return
    own = os.geteuid()
    for folder, _, files in os.walk(home):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            found = path.lstat()
            # PostgreSQL's user has files of its own here; a link has no mode.
            if found.st_uid == own and not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o077:
                path.chmod(stat.S_IMODE(found.st_mode) & ~0o077)


def _sweep_writes(home: Path) -> None:
    """Delete what killed writes left beside files of the stack, which nobody writes now, and of the state."""
    settings = read_settings(home=home)
    for folder in (
        settings.root / "artefacts",
        settings.lake_dir,
        settings.prediction_log,
        settings.model_repository,
    ):
        sweep_writes(folder)
    for path in (
        home / RECORD,
        home / ENV,
        *(home / name / "x" for name in ("secrets", "traffic", "airflow", "prometheus")),
    ):
        name = re.escape(path.name)
        if path.name == "x":
            name = ".+"
        wanted = re.compile(rf"\.{name}\.([a-z0-9_]{{8}}|\d+)")
        for found in path.parent.glob(".*"):
            if wanted.fullmatch(found.name) and found.is_file():
                found.unlink(missing_ok=True)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Only one start of a state folder at a time."""
    home.mkdir(parents=True, exist_ok=True)

    def refusal(pid: str) -> ConflictError:
        return ConflictError(
            f"somebody else (process {pid}) is starting a stack of {home} right now: "
            f"wait for it, then look with `{typed('status', home)}`"
        )

    with alone(home / ".stack.lock", refusal):
        yield


def _require_folders(settings: Settings) -> None:
    """Raise ConfigError naming the setting if the lake or a folder beside it cannot be written.

    A mount that is away, a file in its place, a disk set read-only.
    """
    for folder in (settings.lake_dir, settings.prediction_log, settings.model_repository):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error}): mend it, or set PERENNIAL_HOME to another folder"
            ) from error


def _make_key(home: Path) -> None:
    """The gateway's API key: made once per state folder, readable by its owner only."""
    path = read_settings(home=home).key_file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        if path.read_text().strip():
            return
    path.write_text(secrets.token_urlsafe(32) + "\n")
    path.chmod(0o600)


def _write(home: Path, record: Record) -> None:
    write_atomic(home / RECORD, json.dumps(asdict(record), indent=1).encode())


def _write_env(home: Path, env: Mapping[str, str]) -> None:
    """The addresses for programs of this state folder, and where their secrets lie (pipelines/places.py)."""
    lines = (
        f"{name}={env[name]}"
        for name in sorted(env)
        if name.startswith("PERENNIAL_") and name not in (TAG, "PERENNIAL_PRELOAD") and "\n" not in env[name]
    )
    write_atomic(home / ENV, ("\n".join(lines) + "\n").encode())
