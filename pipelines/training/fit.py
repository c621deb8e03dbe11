"""Train a model: in the caller's process with one rank, else on ranks of their own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.errors import DataError, Unavailable
from pipelines.locks import alone
from pipelines.params import TrainParams
from pipelines.training.group import local_device
from pipelines.training.job import RESULT, WEIGHTS, write_result
from pipelines.training.launch import ONE_NODE, Nodes, launch
from pipelines.training.loop import Watch, optimise
from pipelines.training.rows import Rows
from pipelines.training.stopping import asked_to_leave
from pipelines.training.strategies import name_of

LOCK = "lock"
LOCK_SECONDS = 10.0
"""How long a try waits for the ranks of a killed one to be gone."""


@dataclass(frozen=True)
class Fitted:
    """A trained model on the CPU in evaluation mode, each epoch's mean loss, and the facts of the training."""

    model: nn.Module
    curve: list[float]
    facts: dict[str, Any]


def fit(
    build: Callable[[], nn.Module],
    rows: Rows,
    params: TrainParams,
    work: Path | None = None,
    *,
    device: str = "cpu",
    initial: Path | None = None,
    nodes: Nodes = ONE_NODE,
    beside: Callable[[], AbstractContextManager[None]] = nullcontext,
    watch: Watch | None = None,
) -> Fitted:
    """Build a model with ``params.seed``, fit its scaling (``adapt(numeric, labels)``, if it has one) and train it.

    A model of a number is trained on the labels that its ``standardise`` gives.
    ``work`` keeps checkpoints, metrics.jsonl and the result: a try that finds some there goes on with them, one
    that finds a finished training returns it. ``initial`` are weights to start from instead (their scaling with
    them). Each rank has ``params.threads`` threads: the same inputs then give the same bits on a machine,
    whatever its core count. ``beside()`` is what goes on around the loop itself, entered once the ranks are forked: it
    may start a thread. ``watch`` sees every epoch (loop.py) where one rank trains in this process. Raises DataError
    without rows, TrainingDiverged at the first loss or gradient that is not finite, Unavailable if a rank died, hung or
    was asked to leave.
    """
    if len(rows) < 2 or int(len(rows) * params.validation_share) >= len(rows):
        raise DataError(f"{len(rows)} row(s) to train on: widen dataset.window_days or dataset.fallback_rows")
    with ExitStack() as stack:
        folder = work
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perennial-ranks-")))
        folder.mkdir(parents=True, exist_ok=True)
        # Two tries must not write each other's checkpoints; the ranks of a killed one hold the lock while they live.
        stack.enter_context(
            alone(
                folder / LOCK,
                lambda pid: Unavailable(
                    f"another try of this training runs in {folder} (process {pid}): wait for it, or end it"
                ),
                patience=LOCK_SECONDS,
            )
        )
        stack.enter_context(threads(params.threads))
        torch.manual_seed(params.seed)
        model = build()
        if initial is not None:
            model.load_state_dict(torch.load(initial, weights_only=True))
        elif hasattr(model, "adapt"):
            model.adapt(rows.dense.get("numeric"), rows.labels)
        elif hasattr(model, "fit_target"):
            model.fit_target(rows.labels)
        if hasattr(model, "standardise"):
            rows = replace(rows, labels=model.standardise(rows.labels))
        if not (folder / RESULT).exists():
            if name_of(params) == "single":
                with asked_to_leave() as leaving, beside():
                    outcome = optimise(
                        model, rows, params, device=local_device(device), work=work, preempted=leaving, watch=watch
                    )
                write_result(folder, outcome, params)
            else:
                launch(model, rows, params, folder, device=device, nodes=nodes, beside=beside)
        facts = json.loads((folder / RESULT).read_text())
        model.cpu().load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return Fitted(model.eval(), facts["curve"], facts)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch compute with ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
