"""Start the ranks of a training and wait for them.

One rule says how. The agent (agent.py) forks its ranks on one node's CPUs, as that makes their imports free;
GPUs and several nodes get ranks that are processes of their own. The agent itself is forked from a caller that
has one thread and torch already, as an Airflow task has; any other caller could fork a lock that another of its
threads holds (polars and tokenizers have threads), so there the agent is a fresh interpreter.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from pipelines import storage
from pipelines.contracts import Manifest
from pipelines.errors import Unavailable
from pipelines.files import write_atomic
from pipelines.installation import search_path
from pipelines.params import TrainParams
from pipelines.training.job import FAILURES, JOB, MODEL, ROWS, failure, note
from pipelines.training.rows import Rows

if TYPE_CHECKING:
    from types import FrameType

POLL_SECONDS = 0.05
JOIN_SECONDS = 600.0
"""What further nodes wait for the first one's job, and for its artefact."""
START_SECONDS = 120.0
"""What the ranks may take to import, meet and build, on top of two collectives' time."""

Beside = Callable[[], AbstractContextManager[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Nodes:
    """Several machines: ``count`` of them, this one's ``rank``, and ``endpoint`` (host:port) where they meet.

    They share the working folder.
    """

    count: int = 1
    rank: int = 0
    endpoint: str = ""


ONE_NODE = Nodes()


class _Agent(Protocol):
    """What a forked agent and a fresh one have in common."""

    pid: int

    def terminate(self) -> None: ...


def launch(
    model: nn.Module,
    rows: Rows,
    params: TrainParams,
    folder: Path,
    *,
    device: str,
    nodes: Nodes,
    beside: Beside = nullcontext,
) -> None:
    """Train on ``params.ranks`` ranks; they leave their result in ``folder``."""
    torch.save(model, folder / MODEL)
    rows.save(folder / ROWS)
    for old in (folder / FAILURES).glob("*"):
        old.unlink()
    (folder / FAILURES).mkdir(exist_ok=True)
    (folder / "heartbeat").touch()
    job = {"params": params.model_dump(mode="json"), "device": device, "nodes": asdict(nodes)}
    write_atomic(folder / JOB, json.dumps(job).encode())
    if can_fork(device, nodes):
        log.info("%d ranks (forked)", params.ranks)
        agent = _fork(folder)
    else:
        log.info("%d ranks (in processes of their own)", params.ranks)
        agent = _start(folder)
    code = _wait(agent, folder, params, beside)
    if code:
        raise failure(folder, code)


def follow(folder: Path, node_rank: int, made: Path, key: str) -> Manifest:
    """The part of a node other than the first: its ranks, and then the manifest that the first node commits.

    The job that the first node's :func:`launch` leaves is waited for in ``folder``, its artefact ``key`` in ``made``:
    if that is there already, no rank is started. Raises Unavailable if one of them does not come, and what ``launch``
    raises if one of this node's ranks fails.
    """
    if not _is_committed(made, key):
        _await(
            (folder / JOB).exists,
            f"{folder / JOB} did not come within {JOIN_SECONDS:.0f} s: "
            "start the train step on node 0, on the same file system",
        )
        _run_ranks(folder, node_rank)
    _await(
        lambda: _is_committed(made, key),
        f"node 0 has not committed {made} within {JOIN_SECONDS:.0f} s: look at its log, run the step again",
    )
    return storage.read_manifest(made)


def _is_committed(made: Path, key: str) -> bool:
    return (made / storage.MANIFEST).exists() and storage.read_manifest(made, verify=False).key == key


def _await(come: Callable[[], bool], missing: str) -> None:
    """Wait until something has come; Unavailable, with the words for what is ``missing``, after ``JOIN_SECONDS``."""
    give_up = time.monotonic() + JOIN_SECONDS
    while not come():
        if time.monotonic() > give_up:
            raise Unavailable(missing)
        time.sleep(POLL_SECONDS)


def _run_ranks(folder: Path, node_rank: int) -> None:
    """Run this node's ranks to their end."""
    agent = _start(folder, node_rank)
    with _passing_on(agent):
        code = agent.wait()
    if code:
        raise failure(folder, code)


def can_fork(device: str, nodes: Nodes) -> bool:
    """Whether this process may fork the agent: CPU, one node, and no other thread that could hold a lock."""
    return device == "cpu" and nodes.count == 1 and len(list(Path("/proc/self/task").iterdir())) == 1


def _fork(folder: Path) -> Any:
    from pipelines.training.agent import main

    process = multiprocessing.get_context("fork").Process(target=main, args=(folder, os.getpid()))
    process.start()
    return process


def _start(folder: Path, node_rank: int = 0) -> Any:
    # Found wherever this process stands. Its standard output is this one's standard error: a command's own output is
    # one line of JSON.
    path = os.pathsep.join(filter(None, [*search_path(), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "pipelines.training.agent",
        str(folder),
        "--parent",
        str(os.getpid()),
        "--node-rank",
        str(node_rank),
    ]
    return subprocess.Popen(command, stdout=2, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})


def _code(agent: Any) -> int | None:
    """The agent's exit code, or None while it runs."""
    if isinstance(agent, subprocess.Popen):
        return agent.poll()
    code: int | None = agent.exitcode
    return code


def _join(agent: Any) -> None:
    if isinstance(agent, subprocess.Popen):
        agent.wait()
    else:
        agent.join()


def _wait(agent: Any, folder: Path, params: TrainParams, beside: Beside) -> int:
    """The agent's exit code. SIGTERM is passed on to it; it is ended if the training shows no life for too long."""
    limit = 2 * params.hang_seconds + START_SECONDS
    last_beat = 0
    seen_alive = time.monotonic()
    with _passing_on(agent), beside():
        try:
            while (code := _code(agent)) is None:
                time.sleep(POLL_SECONDS)
                beat = (folder / "heartbeat").stat().st_mtime_ns
                if beat != last_beat:
                    last_beat = beat
                    seen_alive = time.monotonic()
                if time.monotonic() - seen_alive > limit:
                    silent = Unavailable(
                        f"no step for {limit:.0f} s: the ranks were ended; "
                        "run the step again, it goes on at the last checkpoint"
                    )
                    note(folder, "launcher", silent)
                    break
        finally:
            # Its ranks die with it.
            if _code(agent) is None:
                os.kill(agent.pid, signal.SIGKILL)
            _join(agent)
    if code is None:
        return 1
    return code


@contextmanager
def _passing_on(agent: _Agent) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_term(_number: int, _frame: FrameType | None) -> None:
        agent.terminate()

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
