"""What a training uses: processor time and memory of this process and all below it, and of its GPUs."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.files import write_atomic

FILE = "usage.json"
_GPU = {
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "power.draw": "power_usage_watts",
}


@dataclass
class Usage:
    """Summed over all tries of a training on this node.

    Memory is the largest sum of proportional set sizes that was seen.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    tries: int = 0


class Meter:
    """Measures this try on top of the ones before, whose sum a file in the working folder keeps."""

    def __init__(self, work: Path, *, gpus: bool) -> None:
        """Start to count; ``work`` is the training's working folder."""
        self.path = work / FILE
        self.gpus = gpus
        self.before = _read(self.path)
        self.peak = self.before.peak_memory_mb
        self.started = self.at = time.monotonic()
        self.spent = self.seen = _own_seconds() + _below()[0]

    def total(self) -> Usage:
        """All tries up to now."""
        cpu = max(self.seen, _own_seconds() + _below()[0]) - self.spent
        return Usage(
            cpu_seconds=round(self.before.cpu_seconds + cpu, 3),
            wall_seconds=round(self.before.wall_seconds + time.monotonic() - self.started, 3),
            peak_memory_mb=round(self.peak, 1),
            tries=self.before.tries + 1,
        )

    def sample(self) -> dict[str, float]:
        """One look, by the names under which MLflow shows system metrics.

        The sum so far is written to the working folder.
        """
        import psutil

        below, memory = _below()
        seconds = _own_seconds() + below
        now = time.monotonic()
        memory += _memory(psutil.Process())
        self.peak = max(self.peak, memory)
        share = (seconds - self.seen) / max(now - self.at, 1e-9)
        self.seen = max(self.seen, seconds)
        self.at = now
        with suppress(OSError):
            # A full disk must not end what it only measures.
            write_atomic(self.path, json.dumps(asdict(self.total())).encode())
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
            "system/training_cpu_cores": round(max(share, 0.0), 3),
            "system/training_memory_megabytes": round(memory, 1),
        }
        if self.gpus:
            found |= gpu_metrics()
        return found


def money(usage: Usage, price_per_hour: float | None, gpus: int) -> float | None:
    """What the training cost: hours of processor time, or of the GPUs that it held, at a declared price."""
    if price_per_hour is None:
        return None
    hours = usage.cpu_seconds / 3600
    if gpus:
        hours = gpus * usage.wall_seconds / 3600
    return round(hours * price_per_hour, 6)


def gpu_metrics() -> dict[str, float]:
    """Load, memory and power of each GPU as its driver's own command says; nothing without one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, float] = {}
    for number, line in enumerate(lines):
        for name, value in zip(_GPU.values(), line.split(","), strict=False):
            with suppress(ValueError):
                found[f"system/gpu_{number}_{name}"] = float(value)
    return found


def _read(path: Path) -> Usage:
    try:
        return Usage(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Usage()


def _own_seconds() -> float:
    """Processor time of this process and of those below it that have ended."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def _below() -> tuple[float, float]:
    """Processor seconds and memory (MB) of the processes below this one that live, with the ended ones below them."""
    import psutil

    seconds = memory = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:4])
            memory += _memory(process)
    return seconds, memory


def _memory(process: object) -> float:
    """Proportional set size in MB: pages that forked ranks share count once in the sum."""
    return float(process.memory_full_info().pss) / 2**20  # type: ignore[attr-defined]
