"""Train in the caller's process, or on several ranks by torch's elastic agent."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pipelines.config import TrainParams
from pipelines.errors import DataError, TrainingDiverged, Unavailable
from pipelines.training.loop import Rows, optimise

GROUP_TIMEOUT = timedelta(seconds=60)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def fit(build: Callable[[], nn.Module], rows: Rows, params: TrainParams) -> tuple[nn.Module, list[float]]:
    """Build a model with ``params.seed``, fit its scaling and train it; returns it and each epoch's mean loss.

    One thread per rank: the same inputs then give the same bits on a machine, whatever its core count.
    Raises DataError without rows, TrainingDiverged at the first loss that is not finite, Unavailable if a rank
    died.
    """
    if not len(rows):
        raise DataError("no rows to train on: widen dataset.window_days or dataset.fallback_rows")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(params.seed)
        model = build()
        if hasattr(model, "adapt"):
            model.adapt(rows.numeric, rows.labels)
        curve = optimise(model, rows, params) if params.ranks == 1 else _launch(model, rows, params)
    finally:
        torch.set_num_threads(threads)
    return model.eval(), curve


def _launch(model: nn.Module, rows: Rows, params: TrainParams) -> list[float]:
    """Train on ``params.ranks`` forked ranks and load the result into ``model``.

    Forked ranks inherit imports and rows, which makes a launch cost a second instead of ten; CUDA forbids
    the fork. Results come back by file: a pipe would need a reader for large models.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="perennial-ranks-") as folder, _agent_surroundings():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=params.ranks,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            # Without it the agent looks up the host's own name, which need not resolve.
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            start_method="fork",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, _rank)(model, rows, params, folder)
        except ChildFailedError as error:
            diverged = sorted(Path(folder).glob("diverged.*"))
            if diverged:
                raise TrainingDiverged(diverged[0].read_text()) from error
            raise Unavailable(f"a training rank failed: {error.get_first_failure()[1].message}; run the step again") from error
        result = torch.load(Path(folder) / "result.pt", weights_only=True)
    model.load_state_dict(result["weights"])
    curve: list[float] = result["curve"]
    return curve


def _rank(model: nn.Module, rows: Rows, params: TrainParams, folder: str) -> None:
    """One rank's whole life; rank 0 leaves the weights and the curve in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=GROUP_TIMEOUT)
    try:
        curve = optimise(model, rows, params)
    except TrainingDiverged as error:
        (Path(folder) / f"diverged.{dist.get_rank()}").write_text(str(error))
        raise
    if dist.get_rank() == 0:
        torch.save({"weights": model.state_dict(), "curve": curve}, Path(folder) / "result.pt")
    # A DDP wrapper that outlives the group can deadlock: it died with optimise(), collect what holds it.
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


@contextmanager
def _agent_surroundings() -> Iterator[None]:
    """Give the agent what it needs, and take back what it leaves: environment variables and signal handlers."""
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if threading.current_thread() is threading.main_thread() else {}
    # Sharing the rendezvous' store with gloo made half of all launches after the first one hang.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, previous in handlers.items():
            signal.signal(number, previous)
