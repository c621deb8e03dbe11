"""A DAG of steps that do nothing, and as a program what a task of it takes, in Airflow's own test run of a DAG.

``seconds`` is a task's in the fastest of some runs after the first, ``listens`` says whether OpenLineage's listener is
there. The file lies in the folder of DAGs that its environment names.
"""

import json
import sys
import time
from types import ModuleType

from airflow.sdk import DAG, chain
from airflow.utils.db import initdb

from perennial.airflow import StepOperator
from pipelines.line.step import Action

TASKS, RUNS = 3, 4


def run(params, _settings):
    """A step that does nothing."""
    return {"case": params.case}


sys.modules["pipelines.steps.idle"] = module = ModuleType("pipelines.steps.idle")
module.run = run

with DAG("idle", schedule=None) as dag:
    chain(
        *[StepOperator(task_id=f"t{number}", step=Action("idle", "nothing"), case="loans") for number in range(TASKS)]
    )

if __name__ == "__main__":
    from airflow.listeners.listener import get_listener_manager

    initdb()
    done = dag.test()
    taken = []
    for _ in range(RUNS):
        began = time.monotonic()
        done = dag.test()
        taken.append((time.monotonic() - began) / TASKS)
    listens = any("OpenLineage" in type(one).__name__ for one in get_listener_manager().pm.get_plugins())
    sys.__stdout__.write("\n" + json.dumps({"state": done.state, "seconds": min(taken), "listens": listens}) + "\n")
