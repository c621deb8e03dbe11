"""Airflow imports this module at start; in the scheduler it loads what the steps need, once, before the forks.

Tasks are forked from the scheduler's executor, so each has these modules for free: a run of ten tasks
takes seconds instead of a minute. Import only: a query, a session, a connection or an OpenMP region that is
begun here would be copied half-alive into every task. (polars, pyarrow and ONNX Runtime start housekeeping
threads at import; a child without them works.)
"""  # noqa: INP001 - Airflow finds it by name on the path

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
import warnings

__all__: list[str] = []  # Airflow would copy every public name from here into its settings

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
    "onnx",
    "onnxscript",
    "onnxruntime",
    "mlflow",
    "mlflow.onnx",
    "mlflow.tracking",
    "requests",
    "tritonclient.grpc",
)


log = logging.getLogger(__name__)


def _preload() -> None:
    import pipelines.steps

    steps = [f"pipelines.steps.{found.name}" for found in pkgutil.iter_modules(pipelines.steps.__path__)]
    for name in (*HEAVY, *steps):
        try:
            importlib.import_module(name)
        except Exception:
            log.warning("%s does not import and is not preloaded", name, exc_info=True)


def _export_once() -> None:
    """The first dynamo export of a process costs 4.5 s, the later ones 1.5 s: pay it here, on a toy."""
    import torch

    torch.set_num_threads(1)
    toy = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(toy, (torch.zeros(3, 2),), dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False)


if os.environ.get("PERENNIAL_PRELOAD") == "1" and "scheduler" in sys.argv:
    os.environ["OMP_NUM_THREADS"] = "1"
    _preload()
    _export_once()
