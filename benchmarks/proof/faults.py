"""Whatever happens to a training, the next try ends in the bits of the undisturbed one, and no process of it is left.

Dropout is on. A fault comes once the checkpoint of step 10 is published; its training is then run again as a scheduler
would. The task of the real Airflow is killed in a stack of its own, whose scheduler tries again by itself. "Left" are
processes that have a file of the training's folder open or in their command line. `make proof-faults`; about 12
minutes on two quiet cores (``--quick``: ddp alone, about three minutes, written nowhere).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import interrupt, job
from benchmarks.proof.airflow_fault import killed_tasks
from benchmarks.record import goal, record
from benchmarks.reports import rows as rows_of
from pipelines.errors import PerennialError

STRATEGIES = ("single", "ddp 2", "fsdp 2", "ZeRO-2 2")
NETWORK = "toy"
DROPOUT = 0.1
ROWS = 320
PARAMS = job.BASE.model_copy(update={"epochs": 4, "batch_size": 16, "checkpoint_every": 5, "hang_seconds": 60.0})
FIRST = 10
"""The step whose checkpoint must be there before anything happens, of 80."""
RANK_0 = "kill -9 of rank 0"
RANK_1 = "kill -9 of rank 1"
LAUNCHER = "kill -9 of the launcher"
TASK = "kill -9 of the task"
TERM = "SIGTERM to the task"
FULL = "disk full while saving"
CORRUPT = "newest checkpoint corrupt"
FAULTS = (RANK_0, RANK_1, LAUNCHER, TASK, TERM, FULL, CORRUPT)
OF_ONE_PROCESS = (TASK, TERM, FULL, CORRUPT)
DISK_MIB = 64
LIMIT_BYTES = 4096
Row = dict[str, Any]


def main() -> None:
    """Run the proof and write benchmarks/results/proof-faults.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="ddp with two ranks only; prints the table and writes nothing"
    )
    parser.add_argument("--no-airflow", action="store_true", help="leave the real Airflow out; writes nothing")
    given = parser.parse_args()
    began = time.perf_counter()
    strategies = ("ddp 2",) if given.quick else STRATEGIES
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="perennial-proof-") as name:
        folder = Path(name).resolve()
        data, _ = rows_of(ROWS, NETWORK)
        data.save(folder / "rows.pt")
        for strategy in strategies:
            for row in trials(folder, strategy):
                rows.append(row)
                print(row, flush=True)
        if not given.no_airflow:
            for row in killed_tasks(folder / "airflow", strategies):
                rows.append(row)
                print(row, flush=True)
    goals = [
        goal(
            "faults after which the weights are those of the undisturbed training",
            sum(row["same"] for row in rows),
            len(rows),
            "higher",
        ),
        goal("processes left behind", sum(row["left"] for row in rows), 0),
        goal(
            "tries that began anew although there was a checkpoint", sum(row["resumed_from"] is None for row in rows), 0
        ),
    ]
    setting = {
        "network": NETWORK,
        "dropout": DROPOUT,
        "rows": ROWS,
        "batch": PARAMS.batch_size,
        "checkpoint_every": PARAMS.checkpoint_every,
    }
    seconds = time.perf_counter() - began
    keep = not (given.quick or given.no_airflow)
    record(
        "proof-faults",
        rows=rows,
        goals=goals,
        seconds=seconds,
        packages=("torch", "deepspeed"),
        more={"setting": setting},
        keep=keep,
    )
    if not all(each["holds"] for each in goals):
        sys.exit(1)


def trials(folder: Path, strategy: str) -> Iterator[Row]:
    """Every fault under one strategy, against a training to which nothing happens."""
    params = PARAMS.model_copy(update=job.STRATEGIES[strategy])
    place = folder / strategy.replace(" ", "-")
    whole = job.train(place / "undisturbed", NETWORK, DROPOUT, folder / "rows.pt", params)
    for number, fault in enumerate(OF_ONE_PROCESS if strategy == "single" else FAULTS):
        yield {
            "fault": fault,
            "strategy": strategy,
            **trial(place / f"fault-{number}", fault, folder / "rows.pt", params, whole["sha256"]),
        }


def trial(folder: Path, fault: str, rows: Path, params: Any, expected: str) -> Row:
    """One training to which ``fault`` happens, and the next try."""
    on_disk = fault == FULL and interrupt.mounted(folder / "work", DISK_MIB)
    try:
        process = job.start(folder, NETWORK, DROPOUT, rows, params)
        interrupt.after_checkpoint(folder, FIRST, process)
        how = "disk" if on_disk else "limit"
        if fault == FULL:
            how = full(folder, process, on_disk=on_disk)
        elif fault == TERM:
            os.kill(process.pid, signal.SIGTERM)
        else:
            job.kill(victim(fault, process.pid))
        process.wait()
        told = said(folder)
        left = 0 if interrupt.ended(folder) else len(job.holders(folder))
        before = interrupt.checkpoints(folder)
        (folder / "work" / interrupt.BALLAST).unlink(missing_ok=True)
        if fault == CORRUPT:
            interrupt.corrupt(folder / "work" / "checkpoints" / f"step-{before[-1]}")
        done = job.train(folder, NETWORK, DROPOUT, rows, params)
        left += 0 if interrupt.ended(folder) else len(job.holders(folder))
    finally:
        if on_disk:
            interrupt.unmount(folder / "work")
    row = {
        "same": done["sha256"] == expected,
        "left": left,
        "checkpoints": before,
        "resumed_from": done["resumed_from"],
        "weights": done["sha256"][:16],
    }
    if fault == CORRUPT and done["resumed_from"] == before[-1]:
        raise PerennialError(f"the corrupt checkpoint of step {before[-1]} in {folder} was used")
    return row | {"told": f"{how}; {told}" if fault == FULL else told}


def victim(fault: str, task: int) -> int:
    """The process to kill. A corrupt checkpoint is found by the try after any kill."""
    if fault in {TASK, CORRUPT}:
        return task
    if fault == LAUNCHER:
        return interrupt.agent(task)
    return interrupt.rank(task, int(fault == RANK_1))


def full(folder: Path, process: Any, *, on_disk: bool) -> str:
    """Let the training's disk be full until a checkpoint could not be written, then kill the task.

    Returns what was done.
    """
    if on_disk:
        interrupt.fill(folder / "work")
    else:
        interrupt.limit(job.holders(folder), LIMIT_BYTES)
    log = folder / "log"
    interrupt.wait_for(
        lambda: "could not be written" in log.read_text(errors="replace") or process.poll() is not None,
        lambda: False,
        "a full disk",
    )
    missed = log.read_text(errors="replace").count("could not be written")
    if process.poll() is None:
        job.kill(process.pid)
    return (
        f"{f'tmpfs of {DISK_MIB} MiB, full' if on_disk else f'RLIMIT_FSIZE {LIMIT_BYTES}'}: "
        f"{missed} checkpoint(s) not written, then kill -9"
    )


def said(folder: Path) -> str:
    """The error of the try that the fault came to, in short. PerennialError if the fault came too late."""
    path = folder / job.ANSWER
    found = json.loads(path.read_text()) if path.exists() else {"error": "nothing: the task was killed"}
    if "error" not in found:
        raise PerennialError(f"the training in {folder} ended before the fault came: give it more epochs")
    return str(found["error"])[:160]


if __name__ == "__main__":
    main()
