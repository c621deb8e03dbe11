"""Fixtures for the tests that need real services; nothing starts unless a test asks for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time

import pytest
from xdist.scheduler import LoadFileScheduling

from embedded import mlflow, postgres
from embedded.ports import Ports
from embedded.triton import settings as triton_settings
from embedded.triton import triton
from pipelines.deploy import triton as triton_calls
from pipelines.errors import ConfigError, PerennialError
from pipelines.ledger import database
from tests.pipelines.postgres import fresh_schema

# Some machines export it; a child that may not write byte-code starts twice as slowly.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What this checkout's own stack was started with is no part of a test.
os.environ.setdefault("PERENNIAL_CASES", "")

TRITONS_OWN = {"model_repository", "triton", "secrets", "logs"}
"""What of a state folder a running Triton holds."""


@pytest.fixture(scope="session")
def one_triton(tmp_path_factory):
    """A real Triton on free ports, for one module after another (:func:`triton_server`)."""
    home, ports = tmp_path_factory.mktemp("triton"), Ports.free()
    with triton(home, ports):
        yield home, ports


@pytest.fixture(scope="module")
def triton_server(one_triton):
    """A real Triton: ``(home, ports)``; its state folder holds nothing yet, its ``model_repository`` neither."""
    home, ports = one_triton
    settings = triton_settings(home, ports)
    for model in (home / "model_repository").glob("[!.]*"):
        with contextlib.suppress(PerennialError):  # it was not loaded
            triton_calls.unload(settings, model.name)
    left = [*(home / "model_repository").iterdir(), *(path for path in home.iterdir() if path.name not in TRITONS_OWN)]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    database._engine.cache_clear()  # else the ledger that is gone would stay open, and go on
    return home, ports


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory):
    """URL of a real MLflow server on SQLite, for tests that each use a registered model of their own."""
    with mlflow.server(tmp_path_factory.mktemp("mlflow"), Ports.free()) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server():
    """The URL of a real PostgreSQL's empty database.

    Skipped only where the server is not installed (`apt-get install postgresql-15`).
    """
    try:
        postgres.find()
    except ConfigError as error:
        pytest.skip(str(error))
    with postgres.server() as urls:
        yield urls["ledger"]


@pytest.fixture
def schema(postgres_server):
    """The URL of an empty schema in a real PostgreSQL."""
    with fresh_schema(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """The stack that tests/dags/test_real_airflow.py and tests/embedded/test_stack.py share; the latter ends it."""
    from tests.running import running

    with running(tmp_path_factory) as found:
        yield found


START_AIRFLOW = ("tests/system/", "tests/dags/test_real_airflow.py", "tests/embedded/test_stack.py")
"""The files that start an Airflow; those of tests/system ask one running demo."""


class _FilesSideBySide(LoadFileScheduling):
    """With ``pytest -n``, files run side by side, and those with an Airflow one after another.

    Two of them at once are slower than that.
    """

    def _split_scope(self, nodeid: str) -> str:
        return START_AIRFLOW[0] if nodeid.startswith(START_AIRFLOW) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config, log):
    """Asked by pytest-xdist, whose own groups (``--dist loadgroup``) have no effect under pytest 9."""
    return _FilesSideBySide(config, log)


def pytest_collection_modifyitems(items):
    """Files with an Airflow begin, then those with slow tests; short ones come last, so that no worker ends alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(START_AIRFLOW), item.path not in slow))


BUDGET_SECONDS = 1200
"""What `make test` may take in all on two cores."""
BEGAN = time.monotonic()


def pytest_terminal_summary(terminalreporter):
    """Print how long all took against the budget, and where the time went, file by file."""
    spent: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                name = report.nodeid.split("::")[0]
                spent[name] = spent.get(name, 0.0) + report.duration
    terminalreporter.write_line(
        f"test budget: {time.monotonic() - BEGAN:.0f} s of {BUDGET_SECONDS} s, {sum(spent.values()):.0f} s in tests"
    )
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:8]:
        terminalreporter.write_line(f"  {seconds:6.1f} s  {name}")
