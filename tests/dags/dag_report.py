"""Runs in a process of its own: loads the DAG folder as Airflow does and prints what it found as JSON."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "mlflow",
    "numpy",
    "pandas",
    "polars",
    "sklearn",
    "scipy",
    "pandera",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "evidently",
    "matplotlib",
    "tritonclient",
]


def main(cases_root: str | None) -> None:
    """Import each DAG file, noting heavy modules after each; then let Airflow parse the folder."""
    import pipelines.case_files
    import pipelines.cases

    if cases_root:
        pipelines.case_files.CASES_ROOT = Path(cases_root)
        pipelines.cases.__path__.insert(0, cases_root)
    heavy = {}
    for file in sorted((ROOT / "dags").glob("*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        try:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except pipelines.errors.ConfigError as error:
            sys.stderr.write(f"{file.name}: {error}\n")
        heavy[file.name] = [name for name in HEAVY if name in sys.modules]

    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"), bundle_name="dags-folder")
    errors = {Path(path).name: text for path, text in bag.import_errors.items()}
    sys.__stdout__.write(
        json.dumps({"heavy": heavy, "errors": errors, "dags": {name: describe(dag) for name, dag in bag.dags.items()}})
        + "\n"
    )


def describe(dag) -> dict:
    """What the tests look at."""
    return {
        "order": [task.task_id for task in dag.topological_sort()],
        "edges": sorted([task.task_id, after] for task in dag.tasks for after in task.downstream_task_ids),
        "rules": {task.task_id: task.trigger_rule.value for task in dag.tasks},
        "retries": {task.task_id: [task.retries, task.retry_exponential_backoff] for task in dag.tasks},
        "sensors": {task.task_id: task.mode for task in dag.tasks if hasattr(task, "mode")},
        "limits": {
            task.task_id: task.execution_timeout and task.execution_timeout.total_seconds() for task in dag.tasks
        },
        "owners": sorted({task.owner for task in dag.tasks}),
        "tags": sorted(dag.tags),
        "doc": dag.doc_md,
        "max_active_runs": dag.max_active_runs,
        "catchup": dag.catchup,
        "timetable": type(dag.timetable).__name__,
        "params": {
            name: dag.params.get_param(name).schema | {"default": dag.params.get_param(name).has_value}
            for name in dag.params
        },
        "deadlines": [
            [type(one.reference).__name__, one.interval.total_seconds(), one.callback.path, one.callback.kwargs]
            for one in dag.deadline
        ],
        "tells": [dag.on_failure_callback.func.__qualname__, *dag.on_failure_callback.args],
        "lineage": lineage(dag),
        "lines": len(Path(dag.fileloc).read_text().splitlines()),
    }


def lineage(dag) -> dict:
    """What each task reads and makes, as Airflow's own copy of the DAG has it."""
    from airflow.serialization.serialized_objects import DagSerialization

    tasks = DagSerialization.from_dict(DagSerialization.to_dict(dag)).tasks
    return {
        task.task_id: [[asset.uri for asset in side] for side in (task.inlets, task.outlets)]
        for task in tasks
        if task.inlets or task.outlets
    }


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
