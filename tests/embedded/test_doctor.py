"""`perennial doctor` finds each thing that is wrong, says what to do, changes nothing, and is over in time."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, text

from embedded import doctor, ports, stack
from pipelines import case_files, ledger
from pipelines.contracts import Order
from pipelines.deploy import triton as calls
from pipelines.files import file_sha256
from pipelines.settings import Settings
from tests import shop

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No variables of ours but the state folder's."""
    for name in [name for name in os.environ if name.startswith("PERENNIAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))


@pytest.fixture
def settings(tmp_path):
    """A state folder with a champion of the whole case shop; desk is whole, too."""
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.write(root, name)
        settings = Settings(home=tmp_path / "home")
        settings.root.mkdir(mode=0o700)
        for case in ("shop", "lamp"):
            more = {"candidate_key": "k", "bundle": "b", "action": "promote", "trigger": "manual", "reason": "a test"}
            as_of = datetime(2024, 1, 1, tzinfo=UTC)
            judged = {"gate_key": "g", "as_of": as_of, "trigger": "initial", "verdict": {"decision": "promote"}}
            more["verdict_hash"] = ledger.record_verdict(settings.ledger, case=case, **judged)
            ledger.append(settings.ledger, Order(case=case, after=0, champion=1, actor="ada", as_of=as_of, **more))
        ledger.set_retired(settings.ledger, "lamp", retired=True, reason="old", actor="ada")
        yield settings


def said(check, settings):
    """The lines of a check: those that are wrong, and all that is said."""
    lines = list(doctor.CHECKS[check](settings))
    return [line for line in lines if line.state == "wrong"], " | ".join(f"{line.said}: {line.mend}" for line in lines)


def test_every_variable_that_is_read_somewhere_is_known():
    """A name that code, compose or documents use is no misspelling to the doctor."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    used = set[str]()
    for path in map(ROOT.joinpath, tracked):
        if path.suffix in (".py", ".yaml", ".yml", ".sh", ".md", "") and path.is_file() and "tests" not in path.parts:
            used |= set(re.findall(r"(?<![A-Z_])PERENNIAL_[A-Z_]*[A-Z]\b(?!_)", path.read_text(errors="replace")))
    gone = {"PERENNIAL_TRITON_ADMIN_KEY", "PERENNIAL_TRITON_HTTP", "PERENNIAL_X", "PERENNIAL_X_FILE"}
    assert used - gone - doctor.known_variables() == set()


def test_a_misspelt_variable_is_told_with_the_right_one(monkeypatch):
    """What nobody reads is wrong, with the name that it may have meant."""
    monkeypatch.setenv("PERENNIAL_MLFLOW_ULR", "http://x")
    [line] = doctor.variables()
    assert (line.state, line.said, line.mend) == (
        "wrong",
        "nobody reads PERENNIAL_MLFLOW_ULR",
        "did you mean PERENNIAL_MLFLOW_URL?",
    )
    monkeypatch.delenv("PERENNIAL_MLFLOW_ULR")
    assert [line.state for line in doctor.variables()] == ["ok"]


def test_settings_that_cannot_be_read_are_one_line(monkeypatch):
    """Without settings there is nothing else to look at; the variable and what is wrong with it are named."""
    monkeypatch.setenv("PERENNIAL_NODES", "many")
    lines = doctor.examine()
    assert lines[-1].state == "wrong"
    assert "PERENNIAL_NODES" in lines[-1].said


def test_without_a_package_that_everything_needs_it_still_says_which():
    """Where not even settings can be read, as a package is missing, its packages are looked at and that is told."""
    code = "import sys; sys.modules['pydantic_settings'] = None; from embedded import doctor; sys.exit(doctor.main([]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "wrong     settings   cannot be read" in done.stdout
    assert "pydantic_settings" in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_packages_of_an_extra_that_is_there_are_checked(settings, monkeypatch):
    """A missing or another version of a package is named; an extra that is not there at all is no mistake."""
    version = metadata.version

    def changed(name):
        if name in ("lightgbm", "mlflow"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "fastapi" else version(name)

    assert said("packages", settings)[0] == []
    monkeypatch.setattr(metadata, "version", changed)
    problems, everything = said("packages", settings)
    assert [line.said.partition(":")[0] for line in problems] == ["perennial[train]", "perennial[gateway]"]
    assert "mlflow is missing" in problems[0].said
    assert "fastapi is 0.1, not >=" in problems[1].said
    assert "lightgbm" not in everything


def test_a_state_folder_that_cannot_be_written_or_is_full(settings, monkeypatch):
    """Permissions and the room of its disk are looked at; one that is not there yet is fine."""
    assert said("state", settings)[0] == []
    assert "which the first start makes" in said("state", Settings(home=settings.root / "new"))[1]
    (settings.root / "file").touch()
    assert "cannot be written" in said("state", Settings(home=settings.root / "file" / "home"))[0][0].said
    full = SimpleNamespace(f_frsize=1, f_bavail=10, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    assert "0.00 GB are free" in said("state", settings)[0][0].said


def test_secrets_that_others_may_read(settings, monkeypatch, tmp_path):
    """A key or a secret file with an open mode is wrong unless its folder is closed; the command mends it."""
    (settings.root / "api_key").write_text("key")
    (settings.root / "api_key").chmod(0o644)
    assert said("secrets", settings)[0] == []  # its folder is the owner's alone
    settings.root.chmod(0o755)
    (settings.root / "secrets").mkdir()
    (settings.root / "secrets").chmod(0o755)  # whatever the umask says
    (settings.root / "secrets" / "mlflow_password").write_text("secret")
    given = tmp_path / "webhook"
    given.write_text("secret")
    tmp_path.chmod(0o755)
    for path in (settings.root / "secrets" / "mlflow_password", given):
        path.chmod(0o644)
    monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK_FILE", str(given))
    problems, _ = said("secrets", settings)
    assert [line.mend.rpartition("/")[2] for line in problems] == ["api_key", "mlflow_password", "webhook"]
    for line in problems:
        subprocess.run(line.mend.split(), check=True)
    assert said("secrets", settings)[0] == []


def test_a_ledger_that_was_changed_and_one_that_cannot_be_read(settings):
    """A row that is not as it was written is a finding, a file that is no database an error; none yet is fine."""
    assert said("ledger", settings)[0] == []
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.execute(text("UPDATE retirements SET reason = 'another'"))
    engine.dispose()
    [line] = said("ledger", settings)[0]
    assert "case lamp, table retirements" in line.said
    assert "perennial audit" in line.mend
    (settings.root / "ledger.db").write_bytes(b"nonsense" * 1000)
    for path in settings.root.glob("ledger.db-*"):
        path.unlink()
    lines = doctor.examine({"ledger": doctor.ledger})
    assert [line.state for line in lines] == ["wrong"]
    assert "not there yet" in said("ledger", Settings(home=settings.root / "new"))[1]


def test_an_older_ledger_is_read_and_not_changed(settings):
    """One without a table of today is checked in a copy: it lacks the table afterwards as before."""
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE retirements"))
        connection.execute(text("DELETE FROM journal WHERE about = 'retirements'"))
    assert said("ledger", settings)[0] == []
    with engine.begin() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
    engine.dispose()
    assert "retirements" not in names


def test_cases_that_are_broken_retired_or_gone(settings, tmp_path):
    """Each broken case is a line of its own; a retired one is told, and one whose folder is gone is wrong."""
    problems, everything = said("cases", settings)
    assert problems == []
    assert "lamp is retired since" in everything
    shop.edit(tmp_path / "cases" / "desk" / "schema.py", ('label="sold"', 'label="sold'))
    (tmp_path / "cases" / "shop").rename(tmp_path / "aside")
    problems, everything = said("cases", settings)
    assert [line.said.partition(":")[0] for line in problems] == ["desk", "shop"]
    assert "`perennial retire shop --reason ...`" in problems[1].mend
    assert "0 whole, of 1" in everything


@pytest.mark.slow
@pytest.mark.long
def test_sources_are_reached_in_a_bounded_time_and_leave_nothing(tmp_path, monkeypatch):
    """A source that answers, one that raises, one that hangs, and one that keeps what it fetches."""
    monkeypatch.setattr(doctor, "SECONDS", 30.0)
    kinds = {
        "shop_good": 'return Source(name="x", kind="real", why="x", notice="x")',
        "shop_bad": "raise ConnectionError('no warehouse')",
        "shop_slow": "import time; time.sleep(600)",
        "shop_keeps": "(settings.root / 'data' / 'x').write_text('x')",
    }
    for name, line in kinds.items():
        shop.edit(shop.write(tmp_path / "mine", name) / "source.py", ("return Source(", f"{line}\n    return Source("))
    monkeypatch.setenv("PERENNIAL_CASES", str(tmp_path / "mine"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path))
    settings = Settings(home=tmp_path / "home")
    settings.root.mkdir()
    began = time.monotonic()
    problems, everything = said("sources", settings)
    assert time.monotonic() - began < 60
    told = {line.said.partition(":")[0]: line.said for line in problems if line.said.startswith("shop_")}
    assert told.keys() == {"shop_bad", "shop_slow"}
    assert "ConnectionError: no warehouse" in told["shop_bad"]
    assert "no answer in time" in told["shop_slow"]
    assert all(name in everything.rpartition("reached: ")[2] for name in ("shop_good", "shop_keeps"))
    assert not list(settings.root.iterdir())


# --- services ----------------------------------------------------------------------------------------


@pytest.fixture
def service():
    """Starts an HTTP service with these pages ``{path: (status, body)}`` and a clock; gives its address."""
    servers = []

    def start(pages, late=timedelta()):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = pages.get(self.path.partition("?")[0], (404, b"{}"))
                self.send_response_only(status)
                self.send_header("Date", format_datetime(datetime.now(UTC) - late, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def body(**values):
    """A JSON body."""
    return json.dumps(values).encode()


def test_without_services_nothing_is_asked(settings):
    """What is not configured is left out, and that is no mistake."""
    for name in ("MLflow", "Airflow", "Triton", "gateway"):
        assert [line.state for line in doctor.CHECKS[name](settings)] == ["left out"]


def test_services_that_are_away_are_told(settings):
    """Each names its address and what to do; one that does not answer takes none of the others with it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        port = nobody.getsockname()[1]
        names = ("mlflow_url", "airflow_url", "gateway_url")
        given = dict.fromkeys(names, f"http://127.0.0.1:{port}") | {"triton_grpc": f"127.0.0.1:{port}"}
        away = settings.model_copy(update=given)
        for name in ("MLflow", "Airflow", "Triton", "gateway"):
            with pytest.raises(Exception, match=f"{port} does not answer"):
                list(doctor.CHECKS[name](away))


def test_versions_clocks_and_health_of_services(settings, service):
    """Another major version, a clock that is late, a part that does not beat and a champion that does not answer."""
    mlflow = service({"/version": (200, b"1.30.0")}, late=timedelta(minutes=3))
    healthy = {name: {"status": "healthy"} for name in ("metadatabase", "scheduler", "dag_processor", "triggerer")}
    pages = {"/api/v2/version": (200, body(version="3.3.0")), "/api/v2/importErrors": (200, body(import_errors=[]))}
    airflow = service({**pages, "/api/v2/monitor/health": (200, body(**{**healthy, "scheduler": {"status": "x"}}))})
    ready = body(ready=False, cases={"shop": {"champion": 1, "ready": False, "error": "no answer"}})
    here = {"mlflow_url": mlflow, "airflow_url": airflow, "gateway_url": service({"/readyz": (503, ready)})}
    found = settings.model_copy(update=here)
    clock, version = said("MLflow", found)[0]
    assert (clock.check, "clock is -18" in clock.said or "clock is -17" in clock.said) == ("clocks", True)
    assert "the server is 1.30.0" in version.said
    assert "scheduler not healthy" in said("Airflow", found)[0][0].said
    assert said("gateway", found)[0][0].said == "shop: no answer"
    error = {"filename": "perennial_cases.py", "stack_trace": "x\nConfigError: case desk has no DAGs"}
    pages |= {
        "/api/v2/monitor/health": (200, body(**healthy)),
        "/api/v2/importErrors": (200, body(import_errors=[error])),
    }
    good = {"/readyz": (200, body(ready=True, cases={"shop": {}}))}
    found = settings.model_copy(
        update={
            "mlflow_url": service({"/version": (200, metadata.version("mlflow").encode())}),
            "airflow_url": service(pages),
            "gateway_url": service(good),
        }
    )
    assert said("MLflow", found)[0] == said("gateway", found)[0] == []
    assert said("Airflow", found)[0][0].said == "perennial_cases.py: ConfigError: case desk has no DAGs"


def test_a_champion_that_triton_has_not_loaded(settings, monkeypatch):
    """What the ledger names and Triton does not have is wrong, with the command; a retired case need not be there."""
    found = settings.model_copy(update={"triton_grpc": "127.0.0.1:1"})
    there = set()
    monkeypatch.setattr(calls, "version", lambda _settings: "triton 2.51.0")
    monkeypatch.setattr(calls, "index", lambda _settings: there)
    monkeypatch.setattr(calls, "loaded", lambda _settings, case, _version: case in there)
    [line] = said("Triton", found)[0]
    assert (line.said, line.mend) == (
        "version 1 of shop is the champion and is not loaded",
        "`perennial reconcile --case shop`",
    )
    there.add("shop")
    assert said("Triton", found)[0] == []


# --- the stack ---------------------------------------------------------------------------------------


def test_a_port_that_somebody_has(settings, monkeypatch):
    """It is named with the variable that moves it; where the stack itself runs, its ports are its own."""
    for name, port in zip(ports.names(), range(20_000, 30_000), strict=False):
        monkeypatch.setenv(ports.variable(name), str(port))
    monkeypatch.setattr(ports, "is_free", lambda port: port != 20_001)
    assert "20001 (mlflow): set PERENNIAL_PORT_MLFLOW to another one" in said("ports", settings)[0][0].said
    monkeypatch.setattr(ports, "is_free", lambda _port: True)
    assert said("ports", settings)[0] == []


def test_what_a_dead_stack_left(settings):
    """Services that have died, a process that carries the stack's mark, and a lock that somebody holds."""
    assert said("stack", settings)[0] == []
    own = {**os.environ, "PERENNIAL_STACK": stack.triton.stack_tag(settings.root)}
    held = settings.root / ".stack.lock"
    code = f"import fcntl, time; f = open({str(held)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    stray = subprocess.Popen([sys.executable, "-c", f"{code}time.sleep(600)"], env=own, stdout=subprocess.PIPE)
    try:
        stray.stdout.readline()
        dead = stack.Started("mlflow", 999_999_999, 1, "log")
        stack._write(settings.root, stack.Record("tag", ports.Ports(), False, (dead,)))
        found = [line.said for line in said("stack", settings)[0]]
    finally:
        stray.kill()
        stray.wait()
    assert found == [
        f"mlflow of {settings.root} died",
        f"1 process(es) of {settings.root} live without a stack",
        f"process {stray.pid} holds {held}",
    ]


# --- all together ------------------------------------------------------------------------------------


def test_a_check_that_hangs_and_one_that_breaks_cost_the_others_nothing():
    """Each is a line of its own; the whole is over at the deadline."""

    def hangs(_settings):
        yield doctor.ok("slow", "begun")
        time.sleep(60)

    def breaks(_settings):
        raise ModuleNotFoundError("No module named 'polars'")

    began = time.monotonic()
    lines = doctor.examine({"slow": hangs, "broken": breaks, "fine": lambda _: [doctor.ok("fine", "x")]}, seconds=1.0)
    assert time.monotonic() - began < 20
    assert [(line.check, line.state) for line in lines] == [
        ("slow", "ok"),
        ("slow", "wrong"),
        ("broken", "wrong"),
        ("fine", "ok"),
    ]
    assert "not over after 1 s" in lines[1].said
    assert "No module named 'polars'" in lines[2].said


def test_the_whole_of_it_changes_nothing_and_says_so_in_json(settings, monkeypatch, capsys):
    """Every file of the state folder is what it was; the exit code tells programs, and each line has its fields."""

    def files():
        found = [path for path in settings.root.rglob("*") if path.is_file()]
        # In -shm SQLite notes who reads, as of every reader.
        return {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in found if path.suffix != ".db-shm"}

    monkeypatch.setattr(doctor, "ports", lambda _settings: [])
    checks = {name: check for name, check in doctor.CHECKS.items() if name not in ("ports", "machine", "sources")}
    monkeypatch.setattr(doctor.examine, "__defaults__", (checks, 60.0))
    with create_engine(settings.ledger).connect():
        pass
    before = files()
    code = doctor.main(["--json"])
    answer = json.loads(capsys.readouterr().out)
    assert files() == before
    assert (code, answer["ok"]) == (0, True), answer
    assert {frozenset(line) for line in answer["checks"]} == {frozenset(("check", "state", "said", "mend"))}
    monkeypatch.setenv("PERENNIAL_HOEM", "x")
    assert doctor.main([]) == 1
    assert "wrong     variables  nobody reads PERENNIAL_HOEM: did you mean PERENNIAL_HOME?" in capsys.readouterr().out
    assert case_files.roots() == []
