"""Airflow imports this module at start: how its SQLite is opened, and what is loaded before a process forks.

Tasks are forked from the scheduler's executor, so each has these modules for free: a run of ten tasks
takes seconds instead of a minute. So has each look at a DAG file, which is forked from the dag-processor.
Import only: a query, a session, a connection or an OpenMP region that is begun here would be copied
half-alive into every task. (polars, pyarrow and ONNX Runtime start housekeeping threads at import; a child
without them works.)
"""  # noqa: INP001 - Airflow finds it by name on the path

from __future__ import annotations

import gc
import importlib
import logging
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["create_async_metadata_engine", "create_metadata_engine"]  # what Airflow takes over into its settings

HEAVY = (
    "numpy",
    "polars",
    "pandas",
    "pyarrow.parquet",
    "pandera.polars",
    "scipy.stats",
    "sklearn.metrics",
    "sqlalchemy",
    "torch",
    "torch.distributed",
    "torch.distributed.launcher.api",
    "torch.nn.parallel",
    "torch._dynamo",
    "torch.export",
    "torch.onnx._internal.exporter._core",
    "tokenizers",
    "transformers.models.bert.modeling_bert",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "mlflow",
    "mlflow.onnx",
    "mlflow.tracking",
    "requests",
    "tritonclient.grpc",
    "evidently",
    "evidently.metrics",
)

DAGS = ("airflow.dag_processing.dagbag", "airflow.sdk.execution_time.task_runner", "perennial.airflow.cases")
"""What Airflow, and what our DAG files import in each fork that reads one; the folder of plugins comes with it."""


# The api-server writes its audit line inside its event loop. If the lock is held by another of its own
# requests, whose commit waits for that very loop, both stand still until this time is up: keep it short, the
# loser is told 500 and asks again (tasks and embedded/airflow.py do). The others can wait.
LOCK_SECONDS = 2 if "api-server" in sys.argv else 30

log = logging.getLogger(__name__)


def create_metadata_engine(url: str, *, engine_args: dict[str, Any], connect_args: dict[str, Any]) -> Any:
    """Airflow's engine; its SQLite lets readers and a writer work side by side and waits for a lock.

    WAL with synchronous=NORMAL needs no fsync per commit (28 ms each here, several per task): a power cut
    may take the last commits of Airflow's own bookkeeping, never the file, and the steps are idempotent.
    """
    from sqlalchemy import create_engine

    return _in_wal(create_engine(url, connect_args=connect_args, future=True, **engine_args))


def create_async_metadata_engine(
    url: str, *, connect_args: dict[str, Any], engine_args: dict[str, Any] | None = None
) -> Any:
    """The same for the api-server's asynchronous sessions."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, connect_args=connect_args, future=True, **(engine_args or {}))
    _in_wal(engine.sync_engine)
    return engine


def _in_wal(engine: Any) -> Any:
    from sqlalchemy import event

    def pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={LOCK_SECONDS * 1000}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", pragmas)
    return engine


def _preload(names: Iterable[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            log.warning("%s does not import and is not preloaded", name, exc_info=True)


def _steps() -> list[str]:
    import pipelines.steps

    return [f"pipelines.steps.{found.name}" for found in pkgutil.iter_modules(pipelines.steps.__path__)]


def _dags() -> list[str]:
    from airflow.configuration import conf

    plugins = Path(conf.get_mandatory_value("core", "plugins_folder")).glob("*.py")
    return [*DAGS, *sorted(path.stem for path in plugins)]


def _look_at_cases() -> None:
    """A look at a DAG file then looks anew only at a case that has changed. Not for tasks: they run a case's code."""
    try:
        from pipelines.cases.surveying import survey

        survey()
    except Exception:
        log.warning("the cases cannot be looked at, and are not preloaded", exc_info=True)


def _export_once() -> None:
    """The first dynamo export of a process costs 4.5 s, the later ones 1.5 s: pay it here, on a toy."""
    import torch

    torch.set_num_threads(1)
    toy = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            toy, (torch.zeros(3, 2),), dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False
        )


def _preloads() -> bool:
    return os.environ.get("PERENNIAL_PRELOAD") == "1"


def _forks_tasks() -> bool:
    """Whether this process is the one that tasks are forked from.

    The scheduler with its LocalExecutor, else a Celery worker.
    """
    celery = os.environ.get("AIRFLOW__CORE__EXECUTOR") == "CeleryExecutor"
    return ("worker" if celery else "scheduler") in sys.argv


def _die_with_worker(**_signal: Any) -> None:
    """A task's supervisor must not outlive a worker that was killed: its ranks would train on beside the retry's."""
    from pipelines.processes import die_with_parent

    die_with_parent()


if "celery" in sys.argv and "worker" in sys.argv:
    from celery.signals import worker_process_init

    worker_process_init.connect(_die_with_worker)


if _preloads() and _forks_tasks():
    os.environ["OMP_NUM_THREADS"] = "1"
    # What is imported stays: to look for garbage in it takes a fifth of the time.
    gc.disable()
    _preload([*HEAVY, *_steps(), *_dags()])
    _export_once()
    gc.enable()
elif _preloads() and "dag-processor" in sys.argv:
    _preload(_dags())
    _look_at_cases()
