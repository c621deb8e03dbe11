"""What every way into the house has in common: how it reads the environment, and what it takes for a run's clock."""

import importlib.util
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException
from fastapi.testclient import TestClient

import embedded.__main__ as make
from embedded import airflow_metrics, probe, seed, traffic
from embedded.demo import __main__ as demo
from perennial.airflow import failures as perennial_failures
from perennial.airflow import run as perennial_run
from perennial.airflow.operators import StepOperator
from pipelines import cli
from pipelines.errors import ConfigError
from pipelines.line.order import INGEST
from pipelines.params_file import load_params
from serving.gateway.app import create_app

ROOT = Path(__file__).parents[2]
READS_ITSELF = {"pipelines/settings.py", "serving/gateway/settings.py"}
MISTAKE = r"the environment has 1 mistake\(s\): PERENNIAL_NODES: .*valid integer"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder of its own; what a command does to its process (umask, what TERM means) is undone."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    umask = os.umask(0o022)
    term = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "home"
    os.umask(umask)
    signal.signal(signal.SIGTERM, term)


@pytest.fixture
def wrong(monkeypatch):
    """A variable that nobody can use."""
    monkeypatch.setenv("PERENNIAL_NODES", "abc")


COMMANDS = {
    "step": lambda _: cli.main(["ingest", "--case", "loans", "--as-of", "2020-05-01"]),
    "history": lambda _: cli.main(["history", "--case", "loans"]),
    "exporter": lambda _: cli.main(["metrics", "--port", "1"]),
    "airflow-exporter": lambda _: airflow_metrics.main(["--port", "1"]),
    "up": lambda _: make.main(["up"]),
    "up-on-a-folder": lambda home: make.main(["up", "--home", str(home)]),
    "status": lambda _: make.main(["status"]),
    "status-of-a-folder": lambda home: make.main(["status", "--home", str(home)]),
    "down": lambda _: make.main(["down"]),
    "demo": lambda home: demo.main(["--home", str(home)]),
    "traffic": lambda _: traffic.main(),
    "probe": lambda _: probe.main(),
    "seed": lambda _: seed.main(),
}


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_variable_that_is_wrong(name, home, capfd):
    """PERENNIAL_NODES=abc ends every command with exit code 2 and one error.

    It names the variable and is no traceback.
    """
    try:
        code = COMMANDS[name](home)
    except SystemExit as ended:
        code = ended.code
    said = capfd.readouterr().err
    assert code == 2
    assert said.count("PERENNIAL_NODES") == 1
    assert "Traceback" not in said


@pytest.mark.usefixtures("wrong")
def test_a_stack_can_be_stopped_whatever_the_environment_says(home):
    """`make down` of a named folder needs no setting but the folder."""
    assert make.main(["down", "--home", str(home)]) == 0


@pytest.mark.usefixtures("wrong")
def test_the_gateway_names_the_variable_that_is_wrong():
    """The gateway does not start, and its error names the variable."""
    with pytest.raises(ConfigError, match=MISTAKE), TestClient(create_app()):
        pass


def test_the_gateways_own_variables_are_named_too(monkeypatch):
    """A bound of the gateway that is no number is the same kind of error."""
    monkeypatch.setenv("PERENNIAL_GATEWAY_MAX_ROWS", "many")
    with pytest.raises(ConfigError, match=r"1 mistake\(s\): PERENNIAL_GATEWAY_MAX_ROWS: "), TestClient(create_app()):
        pass


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("file", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_parsing_a_dag_file_names_the_variable_that_is_wrong(file):
    """Airflow shows one import error for each DAG file, that names the variable."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    with pytest.raises(ConfigError, match=MISTAKE):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.usefixtures("wrong")
def test_a_task_names_the_variable_that_is_wrong():
    """A task fails at once, and its error names the variable; so does what tells people of a failed run."""
    context = {"params": {}, "dag_run": None, "ti": SimpleNamespace(xcom_push=lambda **_: None)}
    with pytest.raises(AirflowFailException, match=MISTAKE):
        StepOperator(task_id="ingest", step=INGEST, case="bank").execute(context)
    with pytest.raises(ConfigError, match=MISTAKE):
        perennial_failures.tell_failure("bank")(context)


def test_nobody_reads_settings_past_their_one_reader():
    """At run time no code makes Settings or Bounds itself: a mistake in the environment would name no variable."""
    own = [
        str(path.relative_to(ROOT))
        for room in ("perennial", "pipelines", "plugins", "dags", "embedded", "serving", "benchmarks")
        for path in sorted((ROOT / room).rglob("*.py"))
        if any(f"{call}(" in path.read_text().replace(f"class {call}(", "") for call in (" Settings", " Bounds"))
    ]
    assert set(own) <= READS_ITSELF


MAY = datetime(2009, 5, 1, 2, tzinfo=UTC)


PARSER = cli.build_parser()


def _by_command(text):
    return PARSER.parse_args(["ingest", "--case", "bank", "--as-of", text]).as_of


def _by_airflow(text):
    given = perennial_run.clock_param(load_params("bank")).resolve(text)
    return perennial_run.resolve_as_of(given, SimpleNamespace())


@pytest.mark.parametrize("read", [_by_command, _by_airflow], ids=["command line", "Airflow"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2009-05-01", datetime(2009, 5, 1, tzinfo=UTC)),
        ("2009-05-01T02:00:00Z", MAY),
        ("2009-05-01T04:00:00+02:00", MAY),
        ("2009-05-01T02:00:00", MAY),
        ("2009-05-01T02:00:00.000Z", MAY),
        ("2009-05-01T02:00:00.5Z", "'2009-05-01T02:00:00.5Z' has a fraction of a second"),
        ("yesterday", "'yesterday' is neither a date nor an ISO 8601 time: write 2009-05-01 or"),
        ("2009-13-01", "'2009-13-01' is neither"),
        ("0001-01-01T00:00:00+14:00", "'0001-01-01T00:00:00+14:00' is neither"),
    ],
)
def test_command_line_and_airflow_read_the_same_clock(read, text, expected, capsys):
    """A date, a zoned time, one without a zone: one moment by both ways in.

    A fraction of a second and nonsense: one refusal.
    """
    if isinstance(expected, datetime):
        assert read(text) == expected
        return
    with pytest.raises((SystemExit, ConfigError)) as refused:
        read(text)
    assert expected in str(refused.value) + capsys.readouterr().err
