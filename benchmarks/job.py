"""One training of a benchmark in a process of its own.

``python -m benchmarks.job FOLDER`` does what FOLDER/job.json says. Like an Airflow task it has torch loaded and one
thread, so its ranks are forked. FOLDER/answer.json holds the weights' hash and the training's facts, or the error;
FOLDER/work is the training's working folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import PerennialError
from pipelines.params import TrainParams

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "ddp 2": {"strategy": "ddp", "ranks": 2},
    "fsdp 1": {"strategy": "fsdp", "ranks": 1},
    "fsdp 2": {"strategy": "fsdp", "ranks": 2},
    "ZeRO-1 2": {"strategy": "deepspeed", "zero_stage": 1, "ranks": 2},
    "ZeRO-2 2": {"strategy": "deepspeed", "zero_stage": 2, "ranks": 2},
    "ZeRO-3 2": {"strategy": "deepspeed", "zero_stage": 3, "ranks": 2},
}
"""What the tables compare, and the number of ranks of each."""
BASE = TrainParams(
    epochs=1,
    batch_size=32,
    learning_rate=1e-4,
    head_learning_rate=2e-3,
    weight_decay=0.01,
    seed=0,
    ranks=1,
    pool=1024,
    clip=1.0,
)
"""The optimisation of the triage case in fp32, with a constant learning rate."""
ANSWER = "answer.json"
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
POLL_SECONDS = 0.05


@dataclass
class Watched:
    """What was seen of a training from outside."""

    first_step: float | None = None
    """Seconds from the start of its process to the end of the first step's backward pass."""
    peaks: dict[int, float] = field(default_factory=dict)
    """Largest resident memory of each rank, MiB, by process."""


def start(folder: Path, network: str, dropout: float, rows: Path, params: TrainParams) -> subprocess.Popen[bytes]:
    """Start a job in ``folder``; one that finds the working folder of an earlier try there goes on with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWER).unlink(missing_ok=True)
    job = {"network": network, "dropout": dropout, "rows": str(rows), "params": params.model_dump(mode="json")}
    (folder / "job.json").write_text(json.dumps(job))
    with (folder / "log").open("ab") as log:
        environment = {**os.environ, **ALONE, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.job", str(folder)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def answer(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a job and return what it left; PerennialError with its last words if it failed."""
    code = process.wait()
    found: dict[str, Any] = (
        json.loads((folder / ANSWER).read_text())
        if (folder / ANSWER).exists()
        else {"error": f"no answer, exit code {code}"}
    )
    if "error" in found:
        raise PerennialError(
            f"the training in {folder} failed: {found['error']}; its log says {(folder / 'log').read_text()[-1500:]}"
        )
    return found


def train(folder: Path, network: str, dropout: float, rows: Path, params: TrainParams) -> dict[str, Any]:
    """Run a job to its end and return what it left."""
    return answer(folder, start(folder, network, dropout, rows, params))


def watch(folder: Path, process: subprocess.Popen[bytes], *, launched: bool) -> Watched:
    """Look at a job until it ends; ``launched`` says that its ranks are grandchildren of its process."""
    began = time.monotonic()
    beat = folder / "work" / "heartbeat"
    seen = Watched()
    beats = set[int]()
    while process.poll() is None:
        if seen.first_step is None:
            if beat.exists():
                beats.add(beat.stat().st_mtime_ns)
            # A launcher's own first beat comes before its ranks'.
            if len(beats) > launched:
                seen.first_step = time.monotonic() - began
        for rank in [pid for agent in children(process.pid) for pid in children(agent)] if launched else [process.pid]:
            seen.peaks[rank] = max(seen.peaks.get(rank, 0.0), peak_memory(rank))
        time.sleep(POLL_SECONDS)
    return seen


def children(pid: int) -> list[int]:
    """The processes that a process started; none if it is gone."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found


def peak_memory(pid: int) -> float:
    """Largest resident memory of a process so far, MiB; 0 if it is gone."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    if found:
        return int(found[1]) / 1024
    return 0.0


def holders(folder: Path) -> list[int]:
    """The processes that have a file of ``folder`` open or name it.

    A training's task, agent and ranks, by nothing but their job's folder.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_text() + " ".join(
                str(link.readlink()) for link in (process / "fd").iterdir()
            )
        except OSError:
            continue
        if f"{folder}/" in f"{text}/" and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The optimiser steps' lines of a job's metrics."""
    from pipelines.training.metrics import FILE, read

    return [line for line in read(folder / "work" / FILE) if "loss" in line]


def main(folder: Path) -> None:
    """Do the job of ``folder``."""
    # The heavy imports are the job's, not its starter's.
    from benchmarks.workload import network
    from pipelines.training.fit import fit
    from pipelines.training.rows import load_rows
    from pipelines.training.weights import weights_sha256

    job = json.loads((folder / "job.json").read_text())
    params = TrainParams.model_validate_json(json.dumps(job["params"]))
    try:
        fitted = fit(
            lambda: network(job["network"], job["dropout"]), load_rows(Path(job["rows"])), params, folder / "work"
        )
        found: Mapping[str, Any] = {**fitted.facts, "sha256": weights_sha256(fitted.model)}
    except (PerennialError, OSError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    part = folder / f".{ANSWER}"
    part.write_text(json.dumps(found))
    os.replace(part, folder / ANSWER)


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
