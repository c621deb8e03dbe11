"""One real stack for all files that look at a running one: the DAGs in Airflow first, then what kills its processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedded import stack
from embedded.ports import Ports
from embedded.services import PARAMS
from pipelines.case_files import CASES_ROOT
from tests.pipelines.alerts.test_sinks import receiver

PROFILE = os.environ.get("PERENNIAL_TEST_PROFILE", "embedded")
"""full (`make test-full`): the same tests on PostgreSQL, Celery and all that docker-compose.yaml starts."""
CASE, MAPPED = "loans", "bank"
"""The case whose DAGs follow their schedules, and the one that maps its profiles over days."""
GRAFANA = "http://grafana.example.org"
ENDS = ("failed", "cleared", "timed")
"""The trainings of tests/dags/probes.py, by how they end."""
ROOT = Path(__file__).parents[1]


@dataclass
class Running:
    """A stack, the folder of marks by which its tasks are killed, the messages that it sent to people.

    And the events that OpenLineage's sink got.
    """

    stack: stack.Stack
    faults: Path
    messages: list[Any]
    events: list[Any]


@contextmanager
def running(tmp_path_factory) -> Iterator[Running]:
    """A stack whose `loans` follows its schedules and whose `bank` maps its profiles; stopped whatever happens."""
    home, faults, dags = _home(tmp_path_factory), tmp_path_factory.mktemp("faults"), tmp_path_factory.mktemp("dags")
    for path in [*(ROOT / "dags").glob("*.py"), ROOT / "tests/dags/probes.py"]:
        shutil.copy(path, dags)
    try:
        with receiver(200) as (webhook, messages), receiver(200) as (sink, events):
            extra = {
                "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(len(ENDS)),
                "PERENNIAL_GRAFANA_URL": GRAFANA,
                "PERENNIAL_LOG_SEGMENT_SECONDS": "1",
                "PERENNIAL_SCHEDULES": "1",
                "PERENNIAL_ALERT_WEBHOOK": webhook,
                "PERENNIAL_FAILPOINT": f"@{faults}",
            }
            # Only while it starts: the stack lives as long as the process, whose other tests know of no backend.
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OPENLINEAGE_URL", sink)
                started = stack.start(home, Ports.free(), profile=PROFILE, extra_env=extra)
            yield Running(started, faults, messages, events)
    finally:
        assert stack.stop(home) == 0
        if PROFILE == "full":
            shutil.rmtree(home)


def _home(tmp_path_factory) -> Path:
    """A state folder with parameters of its own.

    On the full stack PostgreSQL's user must be able to pass through it, and trainings go to the GPU queue.
    """
    # Ticks every three seconds, for the candidate that tests/dags/test_real_airflow.py puts on trial.
    rollout = {"guard": {"window_minutes": 0.05}}
    own: dict[str, dict[str, dict[str, Any]]] = {MAPPED: {"drift": {"mapped": True}, "rollout": rollout}}
    if PROFILE == "embedded":
        home = tmp_path_factory.mktemp("loop")
    else:
        home = Path(tempfile.mkdtemp(prefix="perennial-full-"))
        home.chmod(0o711)
        own[CASE] = {"resources": {"queue": "gpu"}}
    (home / PARAMS).mkdir(mode=0o700)
    for case, changes in own.items():
        params = yaml.safe_load((CASES_ROOT / case / "params.yaml").read_text())
        path = home / PARAMS / f"{case}.yaml"
        path.touch(mode=0o600)
        path.write_text(
            yaml.safe_dump(params | {block: params.get(block, {}) | values for block, values in changes.items()})
        )
    return home
