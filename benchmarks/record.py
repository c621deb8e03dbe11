"""The one form of a benchmark's result: a table for the terminal and ``benchmarks/results/<name>.json``."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"


def spread(name: str, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    """One row of a result: median, minimum and maximum of repeated measurements, in seconds."""
    return {
        "name": name,
        "median": round(statistics.median(seconds), 4),
        "min": round(min(seconds), 4),
        "max": round(max(seconds), 4),
        "n": len(seconds),
    } | more


def goal(name: str, value: float, limit: float, better: Literal["lower", "higher"] = "lower") -> dict[str, Any]:
    """One goal and whether it holds; a goal that does not hold is a result too, and the limit never moves."""
    return {
        "name": name,
        "value": _short(value),
        "goal": limit,
        "better": better,
        "holds": value <= limit if better == "lower" else value >= limit,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _short(value: float) -> float:
    """Four digits after the point, or three that count where those would all be zero."""
    if abs(value) >= 0.01:
        return round(value, 4)
    return float(f"{value:.3g}")


def record(
    name: str,
    *,
    rows: list[dict[str, Any]],
    goals: list[dict[str, Any]],
    seconds: float,
    packages: Iterable[str] = (),
    more: Mapping[str, Any] | None = None,
    keep: bool = True,
) -> Path:
    """Print rows and goals as tables and write the result file; returns its path.

    ``packages``: whose versions matter; ``more``: further entries of the file. With ``keep`` False nothing is
    written: a quick try says nothing about the machine.
    """
    result = {
        "name": name,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
        "seconds": round(seconds, 1),
        **(more or {}),
        "rows": rows,
        "goals": goals,
    }
    path = RESULTS / f"{name}.json"
    if keep:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    for table in filter(None, (rows, goals)):
        _print(table)
    print(f"written: {path}" if keep else f"not written: {path} is for full runs")
    return path


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and the GPU if there is one."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    kilobytes = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory": f"{kilobytes / 2**20:.0f} GiB", "gpu": _gpu()}


def _gpu() -> str | None:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found or None


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _print(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *[[str(row.get(column, "")) for column in columns] for row in rows]]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
