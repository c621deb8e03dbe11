"""DAGs for tests/dags/test_real_airflow.py.

Trainings whose two ranks lead sessions of their own and are deaf to TERM, and mishaps.
"""

import os
import subprocess
import sys
import time
from datetime import timedelta
from types import ModuleType

from airflow.sdk import DAG

from perennial.airflow.deadlines import deadline
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator
from perennial.airflow.torchrun import TAG, TorchrunOperator
from pipelines.errors import DataError, TooFewRows, Unavailable
from pipelines.line.step import Action

CASE = "loans"
RANKS = 2
DEAF = [
    sys.executable,
    "-S",
    "-c",
    (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('a rank is up', flush=True); "
        "time.sleep(120)"
    ),
]
ENDS = {"failed": None, "cleared": None, "timed": timedelta(seconds=5)}
"""How each training is ended, and its execution timeout."""


def run(params, _settings):
    """Hold ranks until the first try is ended; another try is over at once."""
    if os.environ[TAG].endswith("#1"):
        for _ in range(RANKS):
            subprocess.Popen(DEAF, start_new_session=True)
        time.sleep(120)
    return {"case": params.case}


sys.modules["pipelines.steps.held"] = module = ModuleType("pipelines.steps.held")
module.run = run

for end, limit in ENDS.items():
    with DAG(
        f"held_{end}", schedule=None, deadline=deadline(CASE, timedelta(seconds=2)) if end == "failed" else None
    ) as dag:
        TorchrunOperator(task_id="train", case=CASE, step=Action("held", "hold ranks"), execution_timeout=limit)
    globals()[dag.dag_id] = dag


def broken(_params, _settings):
    """An error that trying again cannot mend."""
    raise DataError("6% of the rows are bad")


def flaky(_params, settings):
    """A service that is back at the second try."""
    mark = settings.root / "flaky"
    if not mark.exists():
        mark.touch()
        raise Unavailable("Triton is down")
    return {}


def early(_params, _settings):
    """A run that comes before any label."""
    raise TooFewRows("no label has arrived")


for mishap in (broken, flaky, early):
    sys.modules[f"pipelines.steps.{mishap.__name__}"] = module = ModuleType(f"pipelines.steps.{mishap.__name__}")
    module.run = mishap
    with DAG(f"mishap_{mishap.__name__}", schedule=None, on_failure_callback=tell_failure(CASE)) as dag:
        StepOperator(
            task_id="step",
            step=Action(mishap.__name__, "a mishap"),
            case=CASE,
            retries=1,
            retry_delay=timedelta(seconds=1),
        )
    globals()[dag.dag_id] = dag
