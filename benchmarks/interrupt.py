"""What can happen to a training, done to it from outside at a known moment: once a checkpoint is there."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import job
from pipelines.errors import PerennialError

POLL_SECONDS = 0.01
LIMIT_SECONDS = 300.0
BALLAST = "ballast"
GONE_SECONDS = 15.0
"""How long a dead training's processes may take to be gone."""


def checkpoints(folder: Path) -> list[int]:
    """The steps of a job's published checkpoints."""
    return steps_in(folder / "work" / "checkpoints")


def steps_in(folder: Path) -> list[int]:
    """The steps whose checkpoints a folder holds."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def wait_for(what: Callable[[], bool], gone: Callable[[], bool], about: str) -> None:
    """Return as soon as ``what`` holds; PerennialError if the training is ``gone`` before, or after five minutes."""
    until = time.monotonic() + LIMIT_SECONDS
    while not what():
        if gone() or time.monotonic() > until:
            raise PerennialError(f"{about} did not come: the training {'ended before' if gone() else 'takes too long'}")
        time.sleep(POLL_SECONDS)


def after_checkpoint(folder: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the checkpoint of ``step`` or a later one is published."""
    wait_for(
        lambda: max(checkpoints(folder), default=0) >= step,
        lambda: process.poll() is not None,
        f"the checkpoint of step {step} in {folder}",
    )


def ended(folder: Path) -> bool:
    """Whether no process of the job is left, within seconds."""
    until = time.monotonic() + GONE_SECONDS
    while job.holders(folder):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def agent(task: int) -> int:
    """The launcher of a training's task. PerennialError if it has none."""
    found = job.children(task)
    if not found:
        raise PerennialError(f"process {task} has no launcher")
    return found[0]


def rank(task: int, number: int) -> int:
    """A rank's process: the task itself without a launcher, else the launcher's child of that number.

    Children are started in the order of the ranks.
    """
    found = job.children(task)
    if found:
        return sorted(job.children(found[0]))[number]
    return task


def corrupt(checkpoint: Path) -> None:
    """Change one byte in the middle of a checkpoint's largest file."""
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def mounted(folder: Path, mebibytes: int) -> bool:
    """Put a file system of its own, this large, at ``folder``; False if this process may not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "perennial-proof", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)


def fill(folder: Path) -> Path:
    """Leave no free byte on the file system of ``folder``; returns the file that takes the space."""
    path = folder / BALLAST
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    return path


def limit(pids: Iterable[int], most: int) -> None:
    """Have processes write no file beyond ``most`` bytes: what a full disk is where none can be mounted."""
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
