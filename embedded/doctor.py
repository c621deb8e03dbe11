"""`perennial doctor`: what is wrong with an installation, and what to do. One line a check, 1 if anything is wrong.

It only reads: nothing is made, mended, started or ended. Checks run beside each other, each until a deadline, so that a
service that hangs costs that long and no more. Each check imports what it needs: a package that is missing is a line,
not an end. What others measure is asked of them: broken cases of the survey, the ledger of the audit, services of
`status`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import httpx

    from pipelines.contracts import Release
    from pipelines.settings import Settings

SECONDS = 45.0
"""The deadline of all checks, which run at once: several times what an idle machine takes to look at every case."""
ANSWER_SECONDS = 5.0
"""How long a service may take to answer."""
LEAST_FREE_GB = 1.0
"""Free space of the state folder below which a training soon finds none."""
SKEW_SECONDS = 5.0
"""Clocks that differ by more are wrong: HTTP tells whole seconds, and an answer takes some."""
OTHERS_MAY = 0o077
PYTHON = (3, 11)
ELSEWHERE = (
    "PERENNIAL_CASES",
    "PERENNIAL_CPUS",
    "PERENNIAL_CPUS_GPU",
    "PERENNIAL_FAILPOINT",
    "PERENNIAL_JOB",
    "PERENNIAL_PORT_GRAFANA",
    "PERENNIAL_PRELOAD",
    "PERENNIAL_ROLE",
    "PERENNIAL_SERVICE",
    "PERENNIAL_STACK",
    "PERENNIAL_TEST_CASE",
    "PERENNIAL_TEST_MARK",
    "PERENNIAL_TEST_PROFILE",
)
"""Variables that are no setting, bound or port of ours: of docker-compose.yaml, and what processes tell each other."""
State = Literal["ok", "wrong", "left out"]


@dataclass(frozen=True)
class Line:
    """What one check came to: what it looked at, how that is, and, where it is wrong, what to do."""

    check: str
    state: State
    said: str
    mend: str = ""


Check = Callable[["Settings"], Iterable[Line]]


def ok(check: str, said: str) -> Line:
    """A check that found nothing wrong."""
    return Line(check, "ok", said)


def wrong(check: str, said: str, mend: str = "") -> Line:
    """A check that found something; ``said`` may say itself what to do."""
    return Line(check, "wrong", " ".join(said.split()), mend)


def left_out(check: str, why: str) -> Line:
    """A check that has nothing to look at here."""
    return Line(check, "left out", why)


# --- this installation -------------------------------------------------------------------------------


def python(_settings: Settings) -> Iterator[Line]:
    """The interpreter, and the libraries of the system that Triton and LightGBM need."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != PYTHON:
        yield wrong("python", f"this is Python {found}", "install Perennial into an environment of Python 3.11")
        return
    yield ok("python", f"{found} at {sys.executable}")
    from embedded import check_machine, triton

    if not triton.VENV.exists():
        yield left_out("machine", f"no Triton is installed beside it ({triton.VENV})")
        return
    problems = check_machine.problems(Path.cwd(), sys.executable, disk=False)
    for said, _package in problems:
        yield wrong("machine", said, check_machine.remedy(problems))
    if not problems:
        yield ok("machine", "has what Triton and LightGBM need")


def packages(_settings: Settings | None = None) -> Iterator[Line]:
    """What the base and each extra that is there (its first package is) ask for."""
    from importlib.metadata import PackageNotFoundError, version

    for extra, wanted in _required().items():
        name = f"perennial[{extra}]" if extra else "perennial"
        problems = []
        for number, requirement in enumerate(wanted):
            try:
                there = version(requirement.name)
            except PackageNotFoundError:
                if extra and number == 0:
                    break
                problems.append(f"{requirement.name} is missing")
                continue
            if not requirement.specifier.contains(there, prereleases=True):
                problems.append(f"{requirement.name} is {there}, not {requirement.specifier}")
        else:
            if problems:
                yield wrong("packages", f"{name}: {'; '.join(problems)}", f"pip install '{name}', or `make setup`")
            else:
                yield ok("packages", f"{name}: {len(wanted)} as they should be")


def _required() -> dict[str, list[Any]]:
    """The requirements of the base ("") and of each extra, but for those that only name others.

    Of the package that is installed, else of the checkout.
    """
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    texts: dict[str, list[str]] = {"": []}
    if project.exists():
        about = tomllib.loads(project.read_text())["project"]
        texts = {"": about["dependencies"], **about["optional-dependencies"]}
        found = {extra: [Requirement(text) for text in listed] for extra, listed in texts.items()}
    else:
        found = {}
        with suppress(PackageNotFoundError):
            for one in map(Requirement, requires("perennial") or ()):
                extra = str(one.marker).partition("==")[2].strip(" \"'") if one.marker else ""
                found.setdefault(extra, []).append(one)
    return {extra: listed for extra, listed in found.items() if listed and listed[0].name != "perennial"}


def variables(_settings: Settings | None = None) -> Iterator[Line]:
    """``PERENNIAL_*`` variables that nobody reads, as they are misspelt."""
    known = known_variables()
    unknown = [name for name in sorted(os.environ) if name.startswith("PERENNIAL_") and name not in known]
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else "unset it"
        yield wrong("variables", f"nobody reads {name}", mend)
    if not unknown:
        own = sum(name.startswith("PERENNIAL_") for name in os.environ)
        yield ok("variables", f"{own} set, all of them known")


def known_variables() -> set[str]:
    """Every ``PERENNIAL_*`` variable that somebody reads."""
    from embedded.ports import names, variable
    from pipelines.settings import Settings

    settings = {f"PERENNIAL_{name.upper()}" for name in Settings.model_fields}
    found = settings | {f"{name}_FILE" for name in settings} | set(map(variable, names())) | set(ELSEWHERE)
    with suppress(ImportError):  # without the gateway's packages
        from serving.gateway.settings import Bounds

        found |= {f"PERENNIAL_GATEWAY_{name.upper()}" for name in Bounds.model_fields}
    return found


def state_folder(settings: Settings) -> Iterator[Line]:
    """Whether it can be written, and how much room its disk has."""
    root = settings.root
    there = next(path for path in (root, *root.parents) if path.exists())
    disk = os.statvfs(there)
    free = disk.f_frsize * disk.f_bavail / 1e9
    if not os.access(there, os.W_OK | os.X_OK) or disk.f_flag & os.ST_RDONLY or not there.is_dir():
        yield wrong("state", f"{there} cannot be written", "let this user write it, or set PERENNIAL_HOME to another")
    elif free < LEAST_FREE_GB:
        yield wrong("state", f"{free:.2f} GB are free for {root}", "make room, or set PERENNIAL_HOME to another disk")
    else:
        new = "" if there == root else ", which the first start makes"
        yield ok("state", f"{root}{new}: can be written, {free:.0f} GB are free")


def secrets(settings: Settings) -> Iterator[Line]:
    """Files with a secret in them that other users of the machine may read."""
    home = settings.root
    given = [name for name in os.environ if name.startswith("PERENNIAL_") and name.endswith("_FILE")]
    named = [Path(os.environ[name]) for name in given]
    files = {settings.key_file, home / "airflow" / "secrets.json", *named}
    with suppress(OSError):
        files |= set((home / "secrets").iterdir())
    there = sorted(path for path in files if path.is_file())
    # Compose's secrets may be read by all, in a folder that only their owner may enter.
    open_ = [path for path in there if path.stat().st_mode & OTHERS_MAY and path.parent.stat().st_mode & OTHERS_MAY]
    for path in open_:
        yield wrong("secrets", f"{path} may be read by others", f"chmod 600 {path}")
    if not open_:
        yield ok("secrets", f"{len(there)} file(s), for their owner alone")


# --- the ledger and the cases ------------------------------------------------------------------------


def ledger(settings: Settings) -> Iterator[Line]:
    """Whether it can be read, and every row is the one that was written."""
    from pipelines import audit
    from pipelines import ledger as books
    from pipelines.ledger import database

    with _ledger_to_read(settings) as url:
        if url is None:
            yield left_out("ledger", f"{database.shown(settings.ledger)} is not there yet")
            return
        cases = books.cases(url)
        rows, found = 0, []
        for case in cases:
            stored, findings, _ = books.stored(url, case)
            rows += sum(map(len, stored.values()))
            found += [*findings, *audit.within(case, stored)]
    if found:
        first = found[0]
        said = (
            f"{len(found)} finding(s), the first: case {first.case}, table {first.table}, {first.row}: {first.problem}"
        )
        yield wrong("ledger", said, "`perennial audit` lists all; see docs/runbooks.md#ledger-changed")
    else:
        yield ok("ledger", f"{rows} row(s) of {len(cases)} case(s), as they were written")


@contextmanager
def _ledger_to_read(settings: Settings) -> Iterator[str | None]:
    """An address of the ledger whose reading changes nothing in it; None if there is no ledger yet.

    SQLite makes files, and Perennial makes tables that an older ledger lacks: a copy is read.
    """
    import sqlite3

    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    from pipelines.ledger import metadata

    url = make_url(settings.ledger)
    if url.get_backend_name() != "sqlite":
        engine = create_engine(url, connect_args={"connect_timeout": int(ANSWER_SECONDS)})
        try:
            there = set(inspect(engine).get_table_names())
        finally:
            engine.dispose()
        yield settings.ledger if set(metadata.tables) <= there else None
        return
    path = Path(url.database or "")
    if not path.exists():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="perennial-doctor-") as folder:
        copy = Path(folder) / "ledger.db"
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=ANSWER_SECONDS)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield f"sqlite:///{copy}"


def cases(settings: Settings) -> Iterator[Line]:
    """Every case's fields, parameters and code; those that are retired, and those whose folder is gone."""
    from pipelines import case_files
    from pipelines import ledger as books
    from pipelines.cases.surveying import survey

    found = survey(settings)
    for case in found:
        if case.problem:
            yield wrong("cases", f"{case.name}: {case.problem}")
    yield ok("cases", f"{sum(not case.problem for case in found)} whole, of {len(found)}")
    with _ledger_to_read(settings) as url:
        if url is None:
            return
        for retirement in books.retired(url).now.values():
            yield ok("cases", str(retirement))
        for name, release in books.gone(url, case_files.case_names()).items():
            said = f"{name}: version {release.champion} is its champion, and it has no folder"
            yield wrong("cases", said, f"put it back, or `perennial retire {name} --reason ...`")


def sources(settings: Settings) -> Iterator[Line]:
    """Whether the rows can be reached of each case that learns from its source.

    That is one without a champion, and one that always does. Of a case that nobody has run and that waits for nobody
    (a history that ships with Perennial) it is only told. In a process of its own, which can be ended, and in a state
    folder of its own, as a source may keep what it fetches.
    """
    from pipelines import case_files
    from pipelines.cases.surveying import survey

    served = {release.case for release in _champions(settings)}
    wanted: dict[str, bool] = {}
    for case in survey(settings):
        if case.params and not case.problem and (case.name not in served or case.params.training_rows == "source"):
            used = (settings.root / "artefacts" / case.name).exists() or case_files.outside(case.name) is not None
            wanted[case.name] = used or case.params.schedule.live
    told: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="perennial-doctor-") as folder:
        _link(settings.root, Path(folder))
        command = [sys.executable, "-c", "from embedded import doctor; doctor.resolve()", str(settings.root), *wanted]
        with suppress(subprocess.TimeoutExpired):
            _run(command, folder, told)
    for name, matters in wanted.items():
        said = told.get(name, "no answer in time: see whether its address can be reached from here")
        if said and matters:
            yield wrong("sources", f"{name}: {said}")
        elif said:
            yield left_out("sources", f"{name}, which nobody has run here: {said}")
    good = [name for name in wanted if told.get(name) == ""]
    yield ok("sources", f"reached: {', '.join(good) or 'none is needed'}")


def _link(home: Path, folder: Path) -> None:
    """Make ``folder`` a state folder of links to what lies in ``home``, in which data can be kept all the same."""
    (folder / "data").mkdir()
    for own in (path for path in (home, home / "data") if path.is_dir()):
        for path in own.iterdir():
            if path != home / "data":
                (folder / path.relative_to(home)).symlink_to(path)


def _run(command: list[str], folder: str, told: dict[str, str]) -> None:
    """Run :func:`resolve` and keep what it says of each case; TimeoutExpired once it has been ended."""
    with tempfile.TemporaryFile("w+") as out:
        try:
            subprocess.run(
                command, env={**os.environ, "PERENNIAL_HOME": folder}, stdout=out, stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL, timeout=SECONDS * 0.8, check=False,
            )  # fmt: skip
        finally:
            out.seek(0)
            for line in out:
                with suppress(ValueError):
                    told |= json.loads(line)


def resolve() -> None:
    """Find the source of each case named behind the state folder; a line of JSON for each, "" if it is there."""
    from pipelines.cases import load_case, part
    from pipelines.settings import read_settings

    settings = read_settings(home=sys.argv[1]).model_copy(update={"home": Path(os.environ["PERENNIAL_HOME"])})
    settings.__dict__.pop("root", None)

    def one(case: str) -> None:
        try:
            found = part(case, "source").resolve(settings, load_case(case).params)
            _ask(getattr(found, "url", None))
            said = ""
        except Exception as error:  # noqa: BLE001 - whatever a case's code does is told of it
            said = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps({case: said}) + "\n")
        sys.stdout.flush()

    _at_once([(lambda case=case: one(case)) for case in sys.argv[2:]], time.monotonic() + SECONDS)  # type: ignore[misc]


def _ask(url: object) -> None:
    """Open a connection to the database that a source is in, if it is in one: to find it is not to ask it."""
    from sqlalchemy import URL, create_engine, pool

    if not isinstance(url, URL):
        return
    if url.get_backend_name() == "sqlite":  # opening it would make it
        Path(url.database or "").stat()
        return
    with create_engine(url, poolclass=pool.NullPool).connect():
        pass


def _champions(settings: Settings) -> list[Release]:
    """What serves of the cases that are here and not retired; nothing where the ledger cannot be read."""
    from pipelines import case_files
    from pipelines import ledger as books
    from pipelines.errors import PerennialError

    found = []
    with _ledger_to_read(settings) as url:
        if url is None:
            return []
        retired = books.retired(url).now
        for case in case_files.case_names():
            with suppress(PerennialError):
                if case not in retired and (release := books.head(url, case)) is not None:
                    found.append(release)
    return found


# --- services ----------------------------------------------------------------------------------------


def mlflow(settings: Settings) -> Iterator[Line]:
    """Whether it answers, in which version, and by which clock."""
    if not settings.mlflow_url:
        yield _not_configured("MLflow", "MLFLOW_URL")
        return
    password = settings.mlflow_password.get_secret_value() if settings.mlflow_password else ""
    login = (settings.mlflow_username, password) if settings.mlflow_username else None
    with _client(settings.mlflow_url, login) as http:
        answer = http.get("/version")
        yield from _clock("MLflow", answer)
        if answer.status_code != 200:
            yield wrong("MLflow", f"{http.base_url} answers {answer.status_code}", "see its login, and its log")
            return
    from importlib.metadata import version

    ours, theirs = version("mlflow"), answer.text.strip()
    if ours.split(".")[0] != theirs.split(".")[0]:
        yield wrong("MLflow", f"the server is {theirs}, this installation {ours}", "install the same major version")
    else:
        yield ok("MLflow", f"{theirs} at {settings.mlflow_url}")


def airflow(settings: Settings) -> Iterator[Line]:
    """Whether it answers, all of its parts beat, and which DAG files it could not import."""
    if not settings.airflow_url:
        yield _not_configured("Airflow", "AIRFLOW_URL")
        return
    from embedded.airflow import client, healthy

    with _client(settings.airflow_url) as http:
        answer = http.get("/api/v2/version")
        yield from _clock("Airflow", answer)
        version = answer.json().get("version", "?") if answer.status_code == 200 else f"answers {answer.status_code}"
    parts = healthy(settings.airflow_url.rstrip("/"))
    down = [name for name, beats in parts.items() if not beats]
    if down:
        yield wrong("Airflow", f"{settings.airflow_url}: {', '.join(down)} not healthy", "see `status`, and its logs")
    else:
        yield ok("Airflow", f"{version} at {settings.airflow_url}, all of its parts beat")
    for error in client(settings).import_errors():
        yield wrong("Airflow", f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}")


def triton(settings: Settings) -> Iterator[Line]:
    """Whether it answers, and has loaded what the ledger names."""
    if not settings.triton_grpc:
        yield _not_configured("Triton", "TRITON_GRPC")
        return
    from pipelines.deploy import triton as calls

    about, loaded = calls.version(settings), calls.index(settings)
    yield ok("Triton", f"{about} at {settings.triton_grpc}, {len(loaded)} model(s) loaded")
    for release in _champions(settings):
        if not calls.loaded(settings, release.case, release.champion):
            said = f"version {release.champion} of {release.case} is the champion and is not loaded"
            yield wrong("Triton", said, f"`perennial reconcile --case {release.case}`")


def gateway(settings: Settings) -> Iterator[Line]:
    """Whether it answers, and is ready."""
    if not settings.gateway_url:
        yield _not_configured("gateway", "GATEWAY_URL")
        return
    with _client(settings.gateway_url) as http:
        answer = http.get("/readyz")
        yield from _clock("gateway", answer)
        said = answer.json()
    if answer.status_code == 200:
        yield ok("gateway", f"{settings.gateway_url} is ready for {len(said['cases'])} case(s)")
        return
    reasons = [said["error"]] if "error" in said else []
    reasons += [f"{name}: {case.get('error')}" for name, case in said.get("cases", {}).items() if not case["ready"]]
    for reason in reasons:
        yield wrong("gateway", reason)


def _not_configured(title: str, setting: str) -> Line:
    return left_out(title, f"none belongs to this state folder, and PERENNIAL_{setting} names none")


@contextmanager
def _client(url: str, login: tuple[str, str] | None = None) -> Iterator[httpx.Client]:
    """A client of a service; an error that it raises says which service does not answer."""
    import httpx

    with httpx.Client(base_url=url.rstrip("/"), auth=login, timeout=ANSWER_SECONDS, trust_env=False) as http:
        try:
            yield http
        except httpx.HTTPError as error:
            from pipelines.errors import Unavailable

            what = str(error) or type(error).__name__
            raise Unavailable(f"{url} does not answer ({what}): start it, or mend its address") from error


def _clock(title: str, answer: httpx.Response) -> Iterator[Line]:
    """Whether a service's clock is ours, by the date of its answer."""
    with suppress(KeyError, ValueError):
        apart = parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
        if abs(apart) > SKEW_SECONDS + answer.elapsed.total_seconds():
            yield wrong("clocks", f"{title}'s clock is {apart:+.0f} s from this machine's", "set both by NTP")


# --- the stack of this state folder ------------------------------------------------------------------


def ports(settings: Settings) -> Iterator[Line]:
    """Whether `up` could start: its ports are free, or its own stack has them."""
    from embedded.ports import FULL_ONLY, Ports
    from pipelines import places
    from pipelines.errors import Unavailable

    if places.running(settings.root):
        yield left_out("ports", "the stack of this state folder runs")
        return
    try:
        Ports.from_environment().require_free(but=FULL_ONLY)
    except Unavailable as error:
        yield wrong("ports", str(error))
    else:
        yield ok("ports", "free for `up`")


def leftovers(settings: Settings) -> Iterator[Line]:
    """Services that have died, processes without a stack, and locks that somebody holds."""
    from embedded import processes, stack

    home = settings.root
    record = stack.read(home)
    living = {process.name: processes.alive(process) for process in (record.processes if record else ())}
    running, dead = ([name for name, lives in living.items() if lives is wanted] for wanted in (True, False))
    lost = 0 if running else stack.strays(home)
    if dead:
        yield wrong("stack", f"{', '.join(dead)} of {home} died", "`perennial down`, then `up`; its log says why")
    if lost:
        yield wrong("stack", f"{lost} process(es) of {home} live without a stack", "`perennial down` ends them")
    held = [] if running else list(_held(home))
    for path, pid in held:
        yield wrong("stack", f"process {pid} holds {path}", "see what it does, and end it if it hangs")
    if not (dead or lost or held):
        yield ok("stack", f"{len(running)} service(s) of {home} live, and nothing is left over")


def _held(home: Path) -> Iterator[tuple[Path, str]]:
    """The lock files of a state folder that a process holds, by the kernel's own list: nothing is locked for it."""
    files = [home / ".stack.lock", *(home / "model_repository").glob(".*.lock")]
    inodes = {path.stat().st_ino: path for path in files if path.exists()}
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            inode = int(words[5].rpartition(":")[2]) if len(words) > 5 and words[1] == "FLOCK" else 0
            if inode in inodes:
                yield inodes[inode], words[4]


# --- all together ------------------------------------------------------------------------------------

CHECKS: Mapping[str, Check] = {
    "python": python,
    "packages": packages,
    "variables": variables,
    "state": state_folder,
    "secrets": secrets,
    "ledger": ledger,
    "cases": cases,
    "sources": sources,
    "MLflow": mlflow,
    "Airflow": airflow,
    "Triton": triton,
    "gateway": gateway,
    "ports": ports,
    "stack": leftovers,
}
"""By what a line says that it is about, in the order in which they are told."""


def examine(checks: Mapping[str, Check] = CHECKS, seconds: float = SECONDS) -> list[Line]:
    """What all checks say; one that is not over after ``seconds`` says that."""
    from pipelines.errors import PerennialError

    try:
        from pipelines.settings import read_settings

        settings = read_settings()
    except PerennialError as error:
        return [*variables(), wrong("settings", str(error))]
    except ImportError as error:
        return [*packages(), wrong("settings", f"cannot be read ({error})", "install what is missing")]
    told: dict[str, list[Line]] = {name: [] for name in checks}
    over: set[str] = set()

    def one(name: str, check: Check) -> None:
        try:
            for line in check(settings):
                told[name].append(line)
        except PerennialError as error:
            told[name].append(wrong(name, str(error)))
        except Exception as error:  # noqa: BLE001 - of a broken installation anything may be
            told[name].append(wrong(name, f"cannot be looked at ({type(error).__name__}: {error})"))
        over.add(name)

    _at_once([(lambda item=item: one(*item)) for item in checks.items()], time.monotonic() + seconds)  # type: ignore[misc]
    late = set(checks) - over
    for name in late:
        told[name].append(wrong(name, f"not over after {seconds:g} s", "run it again when the machine is less busy"))
    return [line for name in checks for line in told[name]]


def _at_once(acts: Iterable[Callable[[], None]], deadline: float) -> None:
    """Do all of them beside each other until the deadline; who is late is left behind, and ends with the process."""
    threads = [threading.Thread(target=act, daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def main(arguments: list[str] | None = None, prog: str = "python -m embedded.doctor") -> int:
    """Print a line for each check; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog=prog, description="what is wrong with this installation, and what to do")
    parser.add_argument("--json", action="store_true", help="one line of JSON: ok, and a list of checks")
    as_json = parser.parse_args(arguments).json
    lines = examine()
    fine = all(line.state != "wrong" for line in lines)
    if as_json:
        print(json.dumps({"ok": fine, "checks": [asdict(line) for line in lines]}))
    else:
        for line in lines:
            mend = f": {line.mend}" if line.mend else ""
            print(f"{line.state:<8}  {line.check:<9}  {line.said}{mend}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
