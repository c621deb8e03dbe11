"""Runs in a process of its own: a run of a case's training DAG by Airflow, as far as ``ingest``; prints the states."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(case: str, as_of: str) -> None:
    """Let Airflow run the DAG in this process; tasks after ``ingest`` are passed over."""
    sys.path.append(str(ROOT / "plugins"))
    spec = importlib.util.spec_from_file_location("perennial_training", ROOT / "dags" / "perennial_training.py")
    sys.modules["perennial_training"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dag = getattr(module, f"{case}_training")
    dag.deadline = []  # kept by the processor of DAG files, which is not here
    conf = {"as_of": as_of, "trigger": None, "reason": None}
    run = dag.test(run_conf=conf, mark_success_pattern="(?!ingest).*")
    states = sorted([task.task_id, task.map_index, str(task.state)] for task in run.get_task_instances())
    sys.__stdout__.write(json.dumps(states) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
