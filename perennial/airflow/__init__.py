"""The Airflow provider: the DAGs of cases, operators for anybody's DAG, hooks and connection types.

A dags folder needs one file for all cases of an installation, or for those that are named::

    \"\"\"Every dag that Airflow runs for my cases.\"\"\"
    from perennial.airflow import dags
    globals().update(dags("bank"))

What stands in ``__all__`` stays. Importing this package imports neither Airflow nor the steps' libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perennial.airflow.cases import dags, require_readable_cases
    from perennial.airflow.hooks import LedgerHook, MlflowHook, TritonHook
    from perennial.airflow.operators import StepOperator
    from perennial.airflow.torchrun import TorchrunOperator
    from perennial.airflow.trigger import TriggerOnce

__all__ = [
    "LedgerHook",
    "MlflowHook",
    "StepOperator",
    "TorchrunOperator",
    "TriggerOnce",
    "TritonHook",
    "dags",
    "require_readable_cases",
]
_HOMES = {
    "LedgerHook": "hooks",
    "MlflowHook": "hooks",
    "StepOperator": "operators",
    "TorchrunOperator": "torchrun",
    "TriggerOnce": "trigger",
    "TritonHook": "hooks",
    "dags": "cases",
    "require_readable_cases": "cases",
}


def __getattr__(name: str) -> Any:
    """A public name, from its module: what lists providers asks for none of them, and shall not wait for Airflow."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: choose one of {', '.join(__all__)}")
