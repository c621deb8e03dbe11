"""Torch's elastic agent: starts the ranks of one node, watches them, ends all when one fails.

FOLDER holds the job that the train step left (launch.py). On each further node of a training over several nodes,
a person or a scheduler runs ``python -m pipelines.training.agent FOLDER --node-rank N``. The same ranks can be had
by hand: ``python -m torch.distributed.run --nproc-per-node 2 -m pipelines.training.rank FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipelines.params import TrainParams
from pipelines.processes import die_with_parent
from pipelines.training import rank
from pipelines.training.job import JOB, note


def main(folder: Path, parent: int, node_rank: int = 0) -> None:
    """Run this node's ranks of the job in ``folder``.

    If one fails, ends the process with code 1 and leaves a note in the folder.
    """
    die_with_parent(parent=parent)
    # A forked agent has its parent's handler until torch's own is there.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The ranks' standard output is no command's answer.
    os.dup2(2, 1)
    job = json.loads((folder / JOB).read_text())
    params = TrainParams.model_validate_json(json.dumps(job["params"]))
    nodes = job["nodes"]
    # Sharing the rendezvous' store with gloo made half of all launches after the first one hang.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(params.threads))
    several = nodes["count"] > 1
    forked = job["device"] == "cpu" and not several
    if forked:
        rank.preload(params)
    own_address = "127.0.0.1"
    rendezvous: dict[str, bool] = {}
    if several:
        # Without an address the agent looks up the host's own name, which need not resolve.
        own_address = _own_address(nodes["endpoint"])
        rendezvous["is_host"] = node_rank == 0
    config = LaunchConfig(
        min_nodes=nodes["count"],
        max_nodes=nodes["count"],
        nproc_per_node=params.ranks // nodes["count"],
        run_id=folder.name.lstrip("."),
        rdzv_backend="c10d",
        rdzv_endpoint=nodes["endpoint"] or "localhost:0",
        rdzv_configs=rendezvous,
        local_addr=own_address,
        # A new try is a matter of the scheduler: restarts inside the agent hung.
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        shutdown_timeout=int(params.hang_seconds) + 1,
        logs_specs=DefaultLogsSpecs(log_dir=tempfile.mkdtemp(dir=folder, prefix="agent.")),
    )
    try:
        if forked:
            elastic_launch(config, rank.main)(str(folder), os.getpid())
        else:
            elastic_launch(config, sys.executable)("-m", "pipelines.training.rank", str(folder))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        note(folder, f"agent-{node_rank}", RuntimeError(f"rank {number}: {failure.message}"))
        sys.exit(1)
    except SignalException as error:
        note(folder, f"agent-{node_rank}", RuntimeError(str(error)))
        sys.exit(1)


def _own_address(endpoint: str) -> str:
    """This machine's address on the way to ``endpoint`` (host:port); nothing is sent."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        address: str = probe.getsockname()[0]
    return address


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.training.agent", description="Run this node's ranks of a training."
    )
    parser.add_argument("folder", type=Path, help="the training's working folder, which all nodes share")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="the process that this one must not outlive")
    parser.add_argument("--node-rank", type=int, default=0, help="this node's number; 0 is where the train step runs")
    given = parser.parse_args()
    main(given.folder, given.parent, given.node_rank)
