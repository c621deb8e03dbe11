"""The operator of a training: it owns every process of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

from perennial.airflow.operators import StepOperator
from perennial.airflow.run import KILL_GRACE
from pipelines.line.order import TRAIN
from pipelines.line.step import Action, Step
from pipelines.processes import carrying, descendants, die_with_parent, end_all

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

TAG = "PERENNIAL_JOB"
"""The variable that everything of a training task carries, with its task's name and try."""


class TorchrunOperator(StepOperator):
    """The train step with the promise that no rank outlives it.

    Everything that it starts carries ``PERENNIAL_JOB=<dag>/<run>/<task>#<try>``. Mark-failed, clear and the execution
    timeout end up in ``on_kill``; a killed worker takes the task with it, and the task its ranks (parent-death
    signals). What another try left all the same is swept at start, before the checkpoint is read: a retry goes on at
    the last one, alone.
    """

    ui_color = "#dfe9f7"

    def __init__(self, *, case: str, step: Step | Action | str = TRAIN, **arguments: Any) -> None:
        super().__init__(step=step, case=case, **arguments)
        self.job = ""

    def execute(self, context: Context) -> dict[str, Any] | list[str]:
        """Sweep, tag, train."""
        about = context["ti"]
        identity = f"{about.dag_id}/{about.run_id}/{about.task_id}#"
        if stale := tagged(identity):
            self.log.warning("another try of this task left %d process(es): %s", len(stale), ", ".join(map(str, stale)))
            end_all(stale, grace=KILL_GRACE)
        self.job = os.environ[TAG] = f"{identity}{about.try_number}"
        die_with_parent(signal.SIGTERM)
        _allow_children()
        try:
            return super().execute(context)
        finally:
            os.environ.pop(TAG, None)

    def on_kill(self) -> None:
        """End all that carries the task's tag or descends from it: ranks live in sessions of their own."""
        end_all([*descendants(), *(tagged(self.job) if self.job else [])], grace=KILL_GRACE)


def tagged(job: str) -> list[int]:
    """The pids of all living processes of the tasks whose names begin with ``job``, this one left out."""
    return carrying({TAG: job}, prefix=True)


def _allow_children() -> None:
    """Let this process start others.

    Forked from a Celery pool it passes for a daemon of multiprocessing, which may not.
    """
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined] # noqa: SLF001 - no public way
