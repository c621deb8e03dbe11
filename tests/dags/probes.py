"""DAGs for tests/dags/test_real_airflow.py: trainings whose two ranks lead sessions of their own and are deaf to TERM."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from types import ModuleType

from airflow.sdk import DAG
from perennial_deadlines import deadline
from perennial_processes import TAG
from perennial_torchrun import TorchrunOperator

CASE = "loans"
RANKS = 2
DEAF = [sys.executable, "-S", "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('a rank is up', flush=True); time.sleep(120)"]
ENDS = {"failed": None, "cleared": None, "timed": timedelta(seconds=5)}
"""How each training is ended, and its execution timeout."""


def run(params):
    """Hold ranks until the first try is ended; another try is over at once."""
    if os.environ[TAG].endswith("#1"):
        for _ in range(RANKS):
            subprocess.Popen(DEAF, start_new_session=True)
        time.sleep(120)
    return {"case": params.case}


sys.modules["pipelines.steps.held"] = module = ModuleType("pipelines.steps.held")
module.run = run

for end, limit in ENDS.items():
    with DAG(f"held_{end}", schedule=None, deadline=deadline(CASE, timedelta(seconds=2)) if end == "failed" else None) as dag:
        TorchrunOperator(task_id="train", case=CASE, step="held", execution_timeout=limit)
    globals()[dag.dag_id] = dag
